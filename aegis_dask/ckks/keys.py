"""Keys and their generation.

The uniform half of every public and evaluation key comes from a 32-byte seed (`Ring.uniform`), so
a written key is half as large and any limb of it can be rebuilt alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks import sampling
from aegis_dask.ckks.galois import (
    conjugation_element,
    decompose,
    normalize,
    power_of_two_steps,
    rotation_element,
    rotation_step,
)
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.errors import AegisError, IncompatibleError, LevelError, MissingKeyError
from aegis_dask.ring.backend import take

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Array


class SecretKey:
    """A uniform ternary secret. It stays with the client: pickling it is refused.

    Write it with `aegis_dask.ckks.serialization.save_secret_key` only.
    """

    def __init__(self, params: Parameters, coefficients: NDArray[np.int64]) -> None:
        self.params = params
        self._coefficients = coefficients

    @cached_property
    def _residues(self) -> Array:
        """``[prime, N]`` over all primes, evaluation domain."""
        ring, limbs = self.params.ring, _all_limbs(self.params)
        return ring.ntt(ring.from_signed(self._coefficients, limbs), limbs)

    def _automorphism(self, galois_element: int) -> Array:
        return self.params.ring.automorphism(self._residues, galois_element)

    def __repr__(self) -> str:
        return f"SecretKey({self.params.name}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise AegisError(
            "a secret key is never pickled or sent to another process; keep it with the client, "
            "or write it to a file with save_secret_key"
        )


@dataclass(frozen=True, eq=False)
class PublicKey:
    """An encryption of zero over QP, ``b = -a s + e``.

    Over QP, not Q: encryption divides by P, which leaves only the rounding of its error.
    """

    params: Parameters
    b: Array
    seed: bytes

    @cached_property
    def a(self) -> Array:
        """The uniform half ``[prime, N]``, regenerated from the seed."""
        limbs = _all_limbs(self.params)
        out = self.params.ring.uniform(self.seed, sampling.DOMAIN_PUBLIC_KEY, [0], limbs)
        first: Array = out[0]
        return first

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.params, self.b, self.seed)  # without the half that is regenerated

    def __repr__(self) -> str:
        return f"PublicKey({self.params.name})"


@dataclass(frozen=True, eq=False)
class EvaluationKey:
    """A key-switching key over QP, in Montgomery form.

    Digit d holds ``b_d = -a_d s + e_d + P g_d s'`` with ``g_d = 1`` on its own primes and 0 on the
    others. `a` is regenerated from the seed on first use and kept.

    Attributes
    ----------
    params
        The parameters.
    b
        ``[digit, prime, N]``: the digits and primes that levels up to `level` use
        (`Parameters.key_digits`, `Parameters.key_limbs`), all of them for the top level.
    seed
        Seed of the uniform half. A row of it depends on its digit and prime alone.
    level
        Highest level of the ciphertexts that the key serves; -1 stands for the top one.
    """

    params: Parameters
    b: Array
    seed: bytes
    level: int = -1

    def __post_init__(self) -> None:
        params, level = self.params, _key_level(self.params, self.level)
        object.__setattr__(self, "level", level)
        rows = (len(params.key_digits(level)), len(params.key_limbs(level)))
        if self.b.shape != (*rows, params.ring_degree):
            raise IncompatibleError(
                f"an array of shape {self.b.shape} is no evaluation key of {params.name} for "
                f"levels up to {level}, which is [{rows[0]}, {rows[1]}, {params.ring_degree}]"
            )

    @cached_property
    def a(self) -> Array:
        """The uniform half, of the shape of `b`."""
        return self.expand()

    def expand(self) -> Array:
        """Return the uniform half, made anew: for callers that do not want the key to keep it."""
        digits, limbs = self.params.key_digits(self.level), self.params.key_limbs(self.level)
        return self.params.ring.uniform(self.seed, sampling.DOMAIN_EVALUATION_KEY, digits, limbs)

    def truncated(self, level: int) -> EvaluationKey:
        """Return the key for levels up to `level`, a copy of the part that they use.

        Raises
        ------
        MissingKeyError
            If the key does not serve that level.
        """
        level = _key_level(self.params, level)
        if level > self.level:
            raise MissingKeyError(
                f"an evaluation key for levels up to {self.level} has no part for level {level}; "
                "truncate one that was made for that level"
            )
        if level == self.level:
            return self
        params, held = self.params, self.params.key_limbs(self.level)
        first = params.key_digits(self.level).start
        digits, kept = params.key_digits(level), params.key_limbs(level)
        rows = np.searchsorted(held, kept)
        # On the host, where keys are that were read from files, whatever the backend.
        own = params.ring.to_host(self.b)[digits.start - first : digits.stop - first]
        part = params.ring.from_host(np.take(own, rows, axis=1))
        return EvaluationKey(params, part, self.seed, level)

    def __reduce__(self) -> tuple[Any, ...]:
        # without the half that is regenerated
        return type(self), (self.params, self.b, self.seed, self.level)

    @property
    def nbytes(self) -> int:
        """Size in memory once the uniform half is expanded."""
        return self.params.key_bytes(self.level)

    def __repr__(self) -> str:
        part = "" if self.level == self.params.max_level else f"levels up to {self.level}, "
        return f"EvaluationKey({self.params.name}, {part}{self.nbytes / 1e6:.0f} MB)"


def _key_level(params: Parameters, level: int | None) -> int:
    """Return the level of a key, None and -1 being the top one."""
    if level is None or level == -1:
        return params.max_level
    if not 0 <= level <= params.max_level:
        raise LevelError(
            f"a key for levels up to {level} was asked for; {params.name} has levels 0 to "
            f"{params.max_level}"
        )
    return level


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """What the evaluator needs: a relinearisation key and keys per Galois element.

    Keys may serve different levels.

    Attributes
    ----------
    params
        The parameters.
    relinearisation
        Key for products of ciphertexts, if any.
    galois
        Galois element -> key.
    """

    params: Parameters
    relinearisation: EvaluationKey | None = None
    galois: dict[int, EvaluationKey] = field(default_factory=dict)

    @cached_property
    def steps(self) -> frozenset[int]:
        """Rotations with a key of their own."""
        return frozenset(self._levels)

    def steps_at(self, level: int) -> frozenset[int]:
        """Return the rotations with a key of their own that serves `level`."""
        return frozenset(step for step, highest in self._levels.items() if highest >= level)

    @cached_property
    def _levels(self) -> dict[int, int]:
        """Rotation -> highest level that its key serves."""
        n = self.params.ring_degree
        rotations = {g: key for g, key in self.galois.items() if g != conjugation_element(n)}
        return {rotation_step(g, n): key.level for g, key in rotations.items()}

    @property
    def nbytes(self) -> int:
        """Size in memory of all keys."""
        keys = [*self.galois.values(), self.relinearisation]
        return sum(key.nbytes for key in keys if key is not None)

    def for_multiplication(self, level: int = 0) -> EvaluationKey:
        """Return the relinearisation key.

        Raises
        ------
        MissingKeyError
            If there is none, or it does not serve `level`.
        """
        how = "relinearisation=True"
        if self.relinearisation is None:
            raise MissingKeyError(
                "multiplying ciphertexts needs a relinearisation key; make one with "
                f"KeyGenerator.evaluation_keys(secret_key, {how})"
            )
        return _serving(self.relinearisation, level, "for products of ciphertexts", how)

    def for_element(self, galois_element: int, level: int = 0) -> EvaluationKey:
        """Return the key of one Galois element.

        Raises
        ------
        MissingKeyError
            If there is none, or it does not serve `level`.
        """
        key = self.galois.get(galois_element)
        n = self.params.ring_degree
        if galois_element == conjugation_element(n):
            what, how = "for complex conjugation", "conjugation=True"
        else:
            step = rotation_step(galois_element, n)
            what, how = f"that rotates by {step} steps", f"rotations=[{step}]"
        if key is None:
            raise MissingKeyError(
                f"there is no evaluation key {what}; make it with "
                f"KeyGenerator.evaluation_keys(secret_key, {how})"
            )
        return _serving(key, level, what, how)

    def path(self, steps: int, level: int = 0) -> tuple[int, ...]:
        """Return rotations with keys that serve `level` and add up to `steps`.

        Raises
        ------
        MissingKeyError
            If the keys cannot reach that rotation, or not in log2(slots) steps.
        """
        slots, available = self.params.slots, self.steps_at(level)
        path = decompose(steps, available, slots)
        # The minimal set, powers of two, needs at most log2(slots); a longer way is a mistake.
        if path is None or len(path) >= slots.bit_length():
            if steps % slots in self.steps:
                self.for_element(rotation_element(steps, self.params.ring_degree), level)
            known = ", ".join(str(s) for s in sorted(available)) or "none"
            lower = len(self.steps) - len(available)
            if lower:
                known += f"; {lower} more serve levels below {level} only"
            why = "do not add up to it" if path is None else f"would take {len(path)} rotations"
            raise MissingKeyError(
                f"no evaluation key rotates by {steps % slots} steps and the keys there are "
                f"({known}) {why}; make it with "
                f"KeyGenerator.evaluation_keys(secret_key, rotations=[{steps}])"
            )
        return path

    def __repr__(self) -> str:
        return (
            f"EvaluationKeys({self.params.name}, "
            f"relinearisation={self.relinearisation is not None}, {len(self.galois)} Galois keys, "
            f"{self.nbytes / 1e6:.0f} MB)"
        )


def _serving(key: EvaluationKey, level: int, what: str, how: str) -> EvaluationKey:
    if level > key.level:
        raise MissingKeyError(
            f"the evaluation key {what} serves levels up to {key.level}, it is used at level "
            f"{level}; make it with KeyGenerator.evaluation_keys(secret_key, {how}, "
            f"level={level}), or bring the ciphertext to level {key.level} first"
        )
    return key


class KeyGenerator:
    """Generates keys from operating-system entropy."""

    def __init__(self, params: Parameters) -> None:
        self.params = params

    def secret_key(self) -> SecretKey:
        """Return a fresh uniform ternary secret."""
        return SecretKey(self.params, sampling.ternary((self.params.ring_degree,)))

    def public_key(self, secret_key: SecretKey) -> PublicKey:
        """Return a public encryption key."""
        check_same(self, secret_key, names=("the key generator", "the secret key"))
        ring = self.params.ring
        limbs = _all_limbs(self.params)
        key = PublicKey(self.params, ring.empty((0,)), sampling.new_seed())
        e = ring.ntt(ring.from_signed(sampling.error((self.params.ring_degree,)), limbs), limbs)
        b = ring.sub(e, ring.multiply(key.a, secret_key._residues, limbs), limbs)
        return PublicKey(self.params, b, key.seed)

    def evaluation_keys(
        self,
        secret_key: SecretKey,
        relinearisation: bool = True,
        rotations: Iterable[int] | Mapping[int, int] | str = (),
        conjugation: bool = False,
        level: int | None = None,
    ) -> EvaluationKeys:
        """Return keys for products and rotations.

        Parameters
        ----------
        secret_key
            The secret.
        relinearisation
            Make the key for products of ciphertexts.
        rotations
            Steps to make keys for (`params.evaluation_key_bytes` each), or ``"powers-of-two"`` for
            the minimal set with which every rotation can be composed. A mapping gives each step the
            highest level at which it is used, which makes the keys of low levels small
            (`Parameters.key_bytes`).
        conjugation
            Make the key for complex conjugation.
        level
            Highest level at which the other keys are used, the top one by default.

        Raises
        ------
        LevelError
            If there is no such level.
        """
        check_same(self, secret_key, names=("the key generator", "the secret key"))
        params, n, slots = self.params, self.params.ring_degree, self.params.slots
        level = _key_level(params, level)
        if isinstance(rotations, str):
            if rotations != "powers-of-two":
                raise ValueError(
                    f"rotations is {rotations!r}; give steps or the string 'powers-of-two'"
                )
            rotations = power_of_two_steps(slots)
        if not isinstance(rotations, Mapping):
            rotations = dict.fromkeys(rotations, level)
        levels: dict[int, int] = {}
        for step, highest in rotations.items():
            for k in normalize([step], slots):
                levels[k] = max(levels.get(k, 0), _key_level(params, highest))
        elements = {rotation_element(k, n): levels[k] for k in sorted(levels)}
        if conjugation:
            elements[conjugation_element(n)] = level
        relin = None
        if relinearisation:
            s = secret_key._residues
            square = params.ring.multiply(s, s, _all_limbs(params))
            relin = self.switching_key(square, s, level)
        galois = {g: self.galois_key(secret_key, g, highest) for g, highest in elements.items()}
        return EvaluationKeys(params, relin, galois)

    def galois_key(
        self, secret_key: SecretKey, galois_element: int, level: int | None = None
    ) -> EvaluationKey:
        """Return the key of X -> X^g, in the form that switches before the automorphism.

        It takes s to the preimage of s; the automorphism of the result is then under s. One ModUp
        serves any number of rotations that way.
        """
        inverse = pow(galois_element, -1, 2 * self.params.ring_degree)
        return self.switching_key(secret_key._residues, secret_key._automorphism(inverse), level)

    def switching_key(self, source: Any, target: Any, level: int | None = None) -> EvaluationKey:
        """Return the key from secret `source` to secret `target`, residues over all primes."""
        params, ring = self.params, self.params.ring
        level = _key_level(params, level)
        digits, limbs = params.key_digits(level), params.key_limbs(level)
        primes = params.chain.all_primes
        error = sampling.error((len(digits), params.ring_degree))
        # In Montgomery form throughout: a uniform residue is its own uniform Montgomery form.
        b = ring.to_montgomery(ring.ntt(ring.from_signed(error, limbs), limbs), limbs)
        key = EvaluationKey(params, b, sampling.new_seed(), level)
        b = ring.sub(b, ring.multiply(key.a, take(ring, target, limbs), limbs), limbs, out=b)
        for d, digit in enumerate(digits):
            bounds = range(params.digit_bounds[digit], params.digit_bounds[digit + 1])
            own = [i for i in limbs if i in bounds]
            first = limbs.index(own[0])
            rows = slice(first, first + len(own))
            factors = [[(params.chain.special_modulus << 32) % primes[i]] for i in own]
            ring.multiply_runs(
                take(ring, source, own), np.array(factors, np.uint32), own, accumulate=b[d, rows]
            )
        return key


def _all_limbs(params: Parameters) -> list[int]:
    return list(range(len(params.chain.all_primes)))
