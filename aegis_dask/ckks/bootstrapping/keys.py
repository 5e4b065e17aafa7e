"""Keys of bootstrapping, and how they are made.

Three kinds, of three moduli:

- ordinary evaluation keys (products, rotations, conjugation), each for the levels of its use;
- the key from the dense to the ephemeral sparse secret, modulo q_0 and few special primes only
  (sparse-secret encapsulation, Bossuat, Troncoso-Pastoriza, Hubaux, ePrint 2022/024);
- `RaisingKey`: from the ephemeral secret back to the dense one, at the top.

The ephemeral secret exists while the keys are made, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from aegis_dask.ckks import sampling
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator, SecretKey
from aegis_dask.ckks.parameters import check_same
from aegis_dask.errors import MissingKeyError
from aegis_dask.ring.backend import take
from aegis_dask.ring.registry import get_ring

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Array, Ring


@dataclass(frozen=True)
class RequiredKeys:
    """What a `Bootstrapper` uses.

    Attributes
    ----------
    rotations
        Rotation -> highest level at which it is used.
    raised
        Rotations of a raised ciphertext, which is under the ephemeral secret.
    relinearisation, conjugation
        Highest levels at which those keys are used; -1 for no conjugation.
    """

    rotations: Mapping[int, int]
    raised: tuple[int, ...]
    relinearisation: int
    conjugation: int

    def __or__(self, other: RequiredKeys) -> RequiredKeys:
        """Return what two bootstrappers use together."""
        rotations = dict(self.rotations)
        for step, level in other.rotations.items():
            rotations[step] = max(rotations.get(step, 0), level)
        return RequiredKeys(
            rotations,
            tuple(sorted({*self.raised, *other.raised})),
            max(self.relinearisation, other.relinearisation),
            max(self.conjugation, other.conjugation),
        )


@dataclass(frozen=True, eq=False)
class SeededKey:
    """A key-switching key in Montgomery form; the uniform half comes from a seed.

    Attributes
    ----------
    ring
        The ring of its primes.
    limbs
        Their indices.
    b
        ``[digit, limb, N]``.
    seed
        Seed of the uniform half.
    """

    ring: Ring
    limbs: tuple[int, ...]
    b: Array
    seed: bytes

    @cached_property
    def a(self) -> Array:
        """The uniform half, of the shape of `b`, made on first use and kept."""
        digits = range(self.b.shape[0])
        return self.ring.uniform(self.seed, sampling.DOMAIN_EVALUATION_KEY, digits, self.limbs)

    @property
    def nbytes(self) -> int:
        """Size in memory, both halves."""
        return 2 * int(self.b.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_seeded, (self.ring.chain, self.limbs, self.b, self.seed)


def _load_seeded(chain: Any, limbs: tuple[int, ...], b: Array, seed: bytes) -> SeededKey:
    return SeededKey(get_ring(chain), limbs, b, seed)


@dataclass(frozen=True, eq=False)
class BootstrappingKeys:
    """All keys that bootstrapping needs; the program's own evaluation keys can be among them.

    Attributes
    ----------
    params
        The parameters.
    evaluation
        Ordinary keys.
    to_sparse
        From the dense to the ephemeral secret, modulo q_0 and few special primes.
    raised
        Rotation -> key from the ephemeral secret to the dense one, for that rotation of a raised
        ciphertext. One digit: the coefficients of a raised ciphertext are below q_0.
    """

    params: BootstrappingParameters
    evaluation: EvaluationKeys
    to_sparse: SeededKey
    raised: dict[int, SeededKey]

    @property
    def nbytes(self) -> int:
        """Size in memory of all keys."""
        own = sum(key.nbytes for key in self.raised.values())
        return self.evaluation.nbytes + self.to_sparse.nbytes + own

    def for_raised(self, step: int) -> SeededKey:
        """Return the key for a rotation of a raised ciphertext.

        Raises
        ------
        MissingKeyError
            If there is none.
        """
        if step not in self.raised:
            known = ", ".join(map(str, sorted(self.raised)))
            raise MissingKeyError(
                f"there is no key that rotates a raised ciphertext by {step} steps (there are "
                f"{known}); make the keys with bootstrapping_keys(params, secret_key, "
                "bootstrapper.required_keys)"
            )
        return self.raised[step]

    def __repr__(self) -> str:
        return (
            f"BootstrappingKeys({self.params.params.name}, {len(self.evaluation.galois)} Galois "
            f"keys, {len(self.raised)} for raised ciphertexts, {self.nbytes / 1e6:.0f} MB)"
        )


def bootstrapping_keys(
    params: BootstrappingParameters, secret_key: SecretKey, required: RequiredKeys
) -> BootstrappingKeys:
    """Make keys, with an ephemeral secret that is thrown away.

    Parameters
    ----------
    params
        The parameters.
    secret_key
        The dense secret.
    required
        `Bootstrapper.required_keys`, or several joined with ``|``, with rotations that a program
        needs added to them.
    """
    scheme = params.params
    check_same(params, secret_key, names=("the bootstrapping parameters", "the secret key"))
    generator, n = KeyGenerator(scheme), scheme.ring_degree
    evaluation = generator.evaluation_keys(
        secret_key,
        relinearisation=False,
        rotations=required.rotations,
        level=max(required.conjugation, 0),
        conjugation=required.conjugation >= 0,
    )
    relin = generator.evaluation_keys(secret_key, level=required.relinearisation).relinearisation
    evaluation = EvaluationKeys(scheme, relin, evaluation.galois)
    sparse = sampling.sparse_ternary(n, params.literal.sparse_weight)
    to_sparse = _to_sparse(params, secret_key, sparse)
    limbs = tuple(scheme.extended_limbs(scheme.max_level))
    ring = scheme.ring
    source = ring.ntt(ring.from_signed(sparse, limbs), limbs)
    p_mod = np.array([[scheme.chain.special_modulus % scheme.chain.all_primes[i]] for i in limbs])
    message = ring.multiply_runs(source, p_mod.astype(np.uint32), limbs)
    raised = {}
    for step in required.raised:
        inverse = pow(5, -step % (n // 2), 2 * n)
        target = take(ring, secret_key._automorphism(inverse), limbs)
        raised[step] = _seeded_key(ring, limbs, message[None], target)
    return BootstrappingKeys(params, evaluation, to_sparse, raised)


def _to_sparse(params: BootstrappingParameters, secret_key: SecretKey, sparse: Any) -> SeededKey:
    chain = params.sparse_chain
    ring = get_ring(chain)
    limbs = tuple(range(len(chain.all_primes)))
    dense = ring.ntt(ring.from_signed(secret_key._coefficients, limbs), limbs)
    target = ring.ntt(ring.from_signed(sparse, limbs), limbs)
    # A digit per prime: few special primes are enough then, and the modulus stays small.
    message = ring.zeros((len(chain.primes), *dense.shape))
    for i, p in enumerate(chain.primes):
        factor = np.array([[chain.special_modulus % p]], np.uint32)
        message[i, i] = ring.multiply_runs(dense[i : i + 1], factor, [i])[0]
    return _seeded_key(ring, limbs, message, target)


def _seeded_key(ring: Ring, limbs: tuple[int, ...], message: Any, target: Any) -> SeededKey:
    """Return ``-a target + e + message`` per digit, in Montgomery form."""
    digits, n = message.shape[0], message.shape[-1]
    e = ring.ntt(ring.from_signed(sampling.error((digits, n)), limbs), limbs)
    b = ring.to_montgomery(ring.add(e, message, limbs), limbs)
    key = SeededKey(ring, limbs, b, sampling.new_seed())
    return replace(key, b=ring.sub(b, ring.multiply(key.a, target, limbs), limbs))
