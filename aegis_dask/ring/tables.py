"""Constants of a list of primes: roots of unity in the orders that the transforms read them.

All products stay below 2^60, so NumPy's 64-bit integers are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring.primes import primitive_root_of_unity

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

LANES = 16
TAIL = 256


def bit_reversal(n: int) -> NDArray[np.int64]:
    """Return the bit-reversal permutation of ``range(n)``, n a power of two."""
    r = np.zeros(1, np.int64)
    while len(r) < n:
        r = np.concatenate([2 * r, 2 * r + 1])
    return r


def powers(base: int, count: int, prime: int) -> U64:
    """Return ``base**i mod prime`` for i < count (a power of two), by doubling."""
    v = np.ones(1, np.uint64)
    while len(v) < count:
        v = np.concatenate([v, v * np.uint64(pow(base, len(v), prime)) % np.uint64(prime)])
    return v


def shoup(constants: U64, prime: int) -> U32:
    """Return ``floor(c 2^32 / prime)``, the companion of a constant factor c < prime."""
    return ((constants << np.uint64(32)) // np.uint64(prime)).astype(np.uint32)


def shoup_pair(constants: Sequence[int], primes: Sequence[int]) -> tuple[U32, U32]:
    """Return constants modulo their primes and their Shoup companions."""
    w = [c % p for c, p in zip(constants, primes, strict=True)]
    ws = [(c << 32) // p for c, p in zip(w, primes, strict=True)]
    return np.array(w, np.uint32), np.array(ws, np.uint32)


@dataclass(frozen=True, eq=False)
class Twiddles:
    """Powers of psi in bit-reversed order with Shoup companions, for all primes.

    Attributes
    ----------
    scalar, scalar_shoup
        ``[prime, N/16]``: ``psi^brv(i)`` for i < N/16, the twiddles of all but four stages.
    vector, vector_shoup
        ``[prime, N/256, 15, 16]``: those of the last four stages, lane g of block G belonging to
        the 16 words at ``256 G + 16 g``.
    """

    scalar: U32
    scalar_shoup: U32
    vector: U32
    vector_shoup: U32


def _vector_layout(w: U32, n: int) -> U32:
    groups = np.arange(n // LANES).reshape(-1, LANES)
    out = np.empty((n // TAIL, 15, LANES), np.uint32)
    for s in range(4):
        for k in range(1 << s):
            out[:, (1 << s) + k - 1] = w[(n // LANES + groups) * (1 << s) + k]
    return out


def twiddles(ring_degree: int, primes: Sequence[int], inverse: bool) -> Twiddles:
    """Build the forward or inverse twiddles of `primes`, each ``1 mod 2 * ring_degree``."""
    n, count = ring_degree, len(primes)
    order = bit_reversal(n)
    scalar = np.empty((2, count, n // LANES), np.uint32)
    vector = np.empty((2, count, n // TAIL, 15, LANES), np.uint32)
    for i, p in enumerate(primes):
        psi = primitive_root_of_unity(p, 2 * n)
        w = powers(pow(psi, -1, p) if inverse else psi, n, p)[order]
        for k, table in enumerate((w.astype(np.uint32), shoup(w, p))):
            scalar[k, i] = table[: n // LANES]
            vector[k, i] = _vector_layout(table, n)
    return Twiddles(scalar[0], scalar[1], vector[0], vector[1])
