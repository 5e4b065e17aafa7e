"""ModRaise under an ephemeral sparse secret.

At level 0 a ciphertext is switched to a sparse secret s', and its residues are lifted to the top
level: it then encrypts ``m + q_0 I``, ``I`` small because s' is sparse. Its components stay below
q_0 as integers. So the decomposition into digits, which the switch back to s would begin with, is
the lift itself: one digit, for which a key of one digit is enough, and which all rotations share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.linear import special_factors
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ring.backend import HoistedKey, contiguous
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import (
    BaseConversion,
    DigitRaise,
    ModDown,
    base_conversion,
    digit_raise,
    mod_down,
)
from aegis_dask.ring.tables import U32, shoup_pair


@lru_cache(maxsize=16)
def _sparse_plans(chain: ModulusChain) -> tuple[DigitRaise, ModDown]:
    window = chain.windows[0]
    raise_plan = digit_raise(chain, window, range(len(window) + 1))
    return raise_plan, mod_down(chain, window, window, True)


def to_sparse_secret(x: Ciphertext, key: SeededKey) -> Ciphertext:
    """Switch a ciphertext of level 0 to the ephemeral secret."""
    ring = key.ring
    raise_plan, down = _sparse_plans(ring.chain)
    data = ring.switch_key(
        contiguous(ring, x.data[:, 1]),
        raise_plan,
        key.b,
        key.a,
        down,
        addend=contiguous(ring, x.data[:, :1]),
    )
    return x.with_data(data)


@dataclass(frozen=True, eq=False)
class _Lift:
    """Constants of the lift from level 0 to all primes of a level and P."""

    sources: list[int]
    factors: U32
    conversion: BaseConversion
    inner: DigitRaise


@lru_cache(maxsize=32)
def _lift(params: Parameters, level: int) -> _Lift:
    chain = params.chain
    sources, limbs = params.limbs(0), params.extended_limbs(level)
    primes, q0 = chain.all_primes, chain.modulus(0)
    factors = [[pow(q0 // primes[i], -1, primes[i])] for i in sources]
    conversion = base_conversion(primes, sources, limbs, exact=True)
    own = np.full(len(limbs), -1, np.int64)  # no limb has residues that need no transform
    inner = DigitRaise(
        np.array(limbs, np.int64),
        own,
        0,
        shoup_pair([], []),
        (conversion,),
        np.array(sources, np.int64),
    )
    return _Lift(sources, np.array(factors, np.uint32), conversion, inner)


@dataclass(frozen=True, eq=False)
class Raised:
    """A raised ciphertext under the ephemeral secret.

    Attributes
    ----------
    params, level
        Parameters of the scheme, and the level.
    first
        P c0 over that level, ``[batch, limb, N]``.
    second
        c1 over that level and P, ``[batch, limb, N]``.
    """

    params: Parameters
    level: int
    first: Any
    second: Any

    @property
    def batch(self) -> int:
        """Number of ciphertexts."""
        return int(self.first.shape[0])

    def switched(
        self, keys: Sequence[SeededKey], galois_elements: Sequence[int], out: Any = None
    ) -> Any:
        """Return P times the ciphertext over QP under secrets of keys, and automorphisms.

        ``[key, batch, 2, limb, N]``, written to `out` if it is given. The secrets are the dense
        one, or its preimage under a rotation: the automorphism.
        """
        lift, ring = _lift(self.params, self.level), self.params.ring
        limbs = self.params.extended_limbs(self.level)
        hoisted = [
            HoistedKey(key.b, key.a, g, np.searchsorted(key.limbs, limbs)[None])
            for key, g in zip(keys, galois_elements, strict=True)
        ]
        # c0 stands in for the residues of digits that need no transform: there are none.
        own, digits = self.first, self.second[:, None]
        return ring.turned_products(own, digits, lift.inner, hoisted, False, self.first, out)


def mod_raise(keys: BootstrappingKeys, x: Ciphertext, level: int) -> Raised:
    """Raise a ciphertext of level 0 to `level`, under the ephemeral secret."""
    sparse = to_sparse_secret(x, keys.to_sparse)
    params, ring, lift = x.params, x.params.ring, _lift(x.params, level)
    coefficients = ring.intt(sparse.data, lift.sources)
    scaled = ring.multiply_runs(coefficients, lift.factors, lift.sources)
    limbs, window = params.extended_limbs(level), len(params.window(level))
    lifted = ring.ntt(ring.convert(scaled, lift.conversion), limbs)
    first = contiguous(ring, lifted[:, 0, :window])
    first = ring.multiply_runs(first, special_factors(params, level), limbs[:window])
    return Raised(params, level, first, contiguous(ring, lifted[:, 1]))
