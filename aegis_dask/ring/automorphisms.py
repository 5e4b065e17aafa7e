"""Permutation tables of automorphisms in the evaluation domain."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring.tables import LANES, TAIL, U32, bit_reversal


def automorphism_indices(ring_degree: int, galois_element: int) -> NDArray[np.int64]:
    """Return i -> index of the point whose value point i takes under X -> X^g."""
    n = ring_degree
    if galois_element % 2 == 0:
        raise BackendError(f"Galois element {galois_element} is even; X -> X^g needs an odd g")
    order = bit_reversal(n)
    exponent = (2 * order + 1) * galois_element % (2 * n)
    out: NDArray[np.int64] = order[exponent >> 1]
    return out


@lru_cache(maxsize=256)
def automorphism_tables(ring_degree: int, galois_element: int) -> tuple[U32, U32, U32]:
    """Return the permutation as (blocks, patterns, targets).

    Block b of 16 points comes from block ``blocks[b] >> 4``, its lanes permuted by row
    ``blocks[b] & 15`` of patterns ``[16, 16]``. Block b of 256 points goes to block ``targets[b]``.
    """
    index = automorphism_indices(ring_degree, galois_element).reshape(-1, LANES)
    lanes = index % LANES
    patterns, which = np.unique(lanes, axis=0, return_inverse=True)
    table = np.zeros((LANES, LANES), np.uint32)
    table[: len(patterns)] = patterns
    blocks = (index[:, 0] // LANES * LANES + which.reshape(-1)).astype(np.uint32)
    targets = np.empty(ring_degree // TAIL, np.uint32)
    targets[index.reshape(-1, TAIL)[:, 0] // TAIL] = np.arange(len(targets))
    return blocks, table, targets
