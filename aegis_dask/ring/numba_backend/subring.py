"""Transforms of polynomials in X^(N/m): the plaintexts of a periodic vector.

Such a polynomial has m distinct values, in runs of N/m points. They come from its m coefficients by
the first log2 m stages of the ring's transform, with the same twiddles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange, uint32

from aegis_dask.ring.numba_backend.arithmetic import shoup_mod
from aegis_dask.ring.numba_backend.elementwise import signed_residue
from aegis_dask.ring.numba_backend.jit import kernel
from aegis_dask.ring.numba_backend.ntt import rows_forward
from aegis_dask.ring.numba_backend.simd import qload, vload, vsplat, vstore

BLOCK = 8192
"""Words of a block: all runs of some columns, 32 KiB."""


@kernel(parallel=True)
def encode_runs(
    out: Any,
    x: Any,
    runs: int,
    columns: int,
    primes: Any,
    tables: Any,
    q: Any,
    one_s: Any,
    w32: Any,
    w32_s: Any,
    w64: Any,
) -> None:
    """``out[l, :, c] = 2^32 NTT(x[:, c])``: residues in Montgomery form of ``[run, column]``.

    x holds signed 64-bit integers; constants as for `elementwise.signed_residue`, by prime of
    `primes`.
    """
    limbs = primes.shape[0]
    width = max(16, BLOCK // runs)
    blocks = (columns + width - 1) // width
    plan, tw, tws, _, _ = tables
    twiddles = int64(plan[3]) // 16
    for i in prange(limbs * blocks):
        l, block = i // blocks, i % blocks
        j = int64(primes[l])
        first = int64(block) * width
        used = min(int64(width), columns - first)
        whole = used - used % 16
        padded = whole + (16 if used > whole else 0)
        p, p2 = vsplat(q[j]), vsplat(uint32(2 * q[j]))
        one, os = vsplat(uint32(1)), vsplat(one_s[l])
        w, ws, minus = vsplat(w32[l]), vsplat(w32_s[l]), vsplat(w64[l])
        y = np.empty(runs * padded, np.uint32)
        rest = np.zeros(16, np.uint64)
        for r in range(runs):
            o, ox = r * padded, r * columns + first
            for c in range(0, whole, 16):
                a, b = qload(x, ox + c), qload(x, ox + c + 8)
                vstore(y, o + c, signed_residue(a, b, one, os, w, ws, minus, p, p2))
            if used > whole:
                for c in range(used - whole):
                    rest[c] = x[ox + whole + c]
                a, b = qload(rest, 0), qload(rest, 8)
                vstore(y, o + whole, signed_residue(a, b, one, os, w, ws, minus, p, p2))
        groups, size = 1, runs * padded
        while groups < runs:
            stages = 4
            while groups << stages > runs:
                stages -= 1
            for g in range(groups):
                o = g * size
                rows_forward(stages, y, o, y, o, size, tw, tws, j * twiddles, groups + g, q[j])
            groups <<= stages
            size >>= stages
        last = np.empty(16, np.uint32)
        for r in range(runs):
            o, oy = (l * runs + r) * columns + first, r * padded
            for c in range(0, whole, 16):
                vstore(out, o + c, shoup_mod(vload(y, oy + c), w, ws, p))
            if used > whole:
                vstore(last, 0, shoup_mod(vload(y, oy + whole), w, ws, p))
                for c in range(used - whole):
                    out[o + whole + c] = last[c]
