"""Keys and their generation.

The uniform half of every public and evaluation key comes from a 32-byte seed (`Ring.uniform`), so
a written key is half as large and any limb of it can be rebuilt alone.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from aegis_dask.errors import AegisError, MissingKeyError

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
    """A key-switching key ``[digit, prime, N]`` over QP, in Montgomery form.

    Digit d holds ``b_d = -a_d s + e_d + P g_d s'`` with ``g_d = 1`` on its own primes and 0 on the
    others. `a` is regenerated from the seed on first use and kept.
    """

    params: Parameters
    b: Array
    seed: bytes

    @cached_property
    def a(self) -> Array:
        """The uniform half ``[digit, prime, N]``."""
        digits = list(range(self.params.digits))
        limbs = _all_limbs(self.params)
        return self.params.ring.uniform(self.seed, sampling.DOMAIN_EVALUATION_KEY, digits, limbs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.params, self.b, self.seed)  # without the half that is regenerated

    @property
    def nbytes(self) -> int:
        """Size in memory once the uniform half is expanded."""
        return self.params.evaluation_key_bytes

    def __repr__(self) -> str:
        return f"EvaluationKey({self.params.name}, {self.nbytes / 1e6:.0f} MB)"


@dataclass(frozen=True, eq=False)
class EvaluationKeys:
    """What the evaluator needs: a relinearisation key and keys per Galois element.

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
        n = self.params.ring_degree
        return frozenset(rotation_step(g, n) for g in self.galois if g != conjugation_element(n))

    @property
    def nbytes(self) -> int:
        """Size in memory of all keys."""
        count = len(self.galois) + (self.relinearisation is not None)
        return count * self.params.evaluation_key_bytes

    def for_multiplication(self) -> EvaluationKey:
        """Return the relinearisation key.

        Raises
        ------
        MissingKeyError
            If there is none.
        """
        if self.relinearisation is None:
            raise MissingKeyError(
                "multiplying ciphertexts needs a relinearisation key; make one with "
                "KeyGenerator.evaluation_keys(secret_key, relinearisation=True)"
            )
        return self.relinearisation

    def for_element(self, galois_element: int) -> EvaluationKey:
        """Return the key of one Galois element.

        Raises
        ------
        MissingKeyError
            If there is none.
        """
        key = self.galois.get(galois_element)
        if key is None:
            n = self.params.ring_degree
            if galois_element == conjugation_element(n):
                what, how = "for complex conjugation", "conjugation=True"
            else:
                step = rotation_step(galois_element, n)
                what, how = f"that rotates by {step} steps", f"rotations=[{step}]"
            raise MissingKeyError(
                f"there is no evaluation key {what}; make it with "
                f"KeyGenerator.evaluation_keys(secret_key, {how})"
            )
        return key

    def path(self, steps: int) -> tuple[int, ...]:
        """Return rotations with keys that add up to `steps`.

        Raises
        ------
        MissingKeyError
            If the keys cannot reach that rotation, or not in log2(slots) steps.
        """
        slots = self.params.slots
        path = decompose(steps, self.steps, slots)
        # The minimal set, powers of two, needs at most log2(slots); a longer way is a mistake.
        if path is None or len(path) >= slots.bit_length():
            known = ", ".join(str(s) for s in sorted(self.steps)) or "none"
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
        rotations: Iterable[int] | str = (),
        conjugation: bool = False,
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
            the minimal set with which every rotation can be composed.
        conjugation
            Make the key for complex conjugation.
        """
        check_same(self, secret_key, names=("the key generator", "the secret key"))
        n, slots = self.params.ring_degree, self.params.slots
        if isinstance(rotations, str):
            if rotations != "powers-of-two":
                raise ValueError(
                    f"rotations is {rotations!r}; give steps or the string 'powers-of-two'"
                )
            rotations = power_of_two_steps(slots)
        elements = [rotation_element(k, n) for k in normalize(rotations, slots)]
        if conjugation:
            elements.append(conjugation_element(n))
        relin = None
        if relinearisation:
            s = secret_key._residues
            square = self.params.ring.multiply(s, s, _all_limbs(self.params))
            relin = self.switching_key(square, s)
        return EvaluationKeys(
            self.params, relin, {g: self.galois_key(secret_key, g) for g in elements}
        )

    def galois_key(self, secret_key: SecretKey, galois_element: int) -> EvaluationKey:
        """Return the key of X -> X^g, in the form that switches before the automorphism.

        It takes s to the preimage of s; the automorphism of the result is then under s. One ModUp
        serves any number of rotations that way.
        """
        inverse = pow(galois_element, -1, 2 * self.params.ring_degree)
        return self.switching_key(secret_key._residues, secret_key._automorphism(inverse))

    def switching_key(self, source: Any, target: Any) -> EvaluationKey:
        """Return the key from secret `source` to secret `target`, residues over all primes."""
        params, ring = self.params, self.params.ring
        limbs = _all_limbs(params)
        primes = params.chain.primes
        error = sampling.error((params.digits, params.ring_degree))
        # In Montgomery form throughout: a uniform residue is its own uniform Montgomery form.
        b = ring.to_montgomery(ring.ntt(ring.from_signed(error, limbs), limbs), limbs)
        seed = sampling.new_seed()
        key = EvaluationKey(params, b, seed)
        b = ring.sub(b, ring.multiply(key.a, target, limbs), limbs, out=b)
        for d in range(params.digits):
            own = slice(params.digit_bounds[d], params.digit_bounds[d + 1])
            factors = [[(params.chain.special_modulus << 32) % p] for p in primes[own]]
            ring.multiply_runs(
                source[own], np.array(factors, np.uint32), limbs[own], accumulate=b[d, own]
            )
        return key


def _all_limbs(params: Parameters) -> list[int]:
    return list(range(len(params.chain.all_primes)))
