"""Modular matrix products of polynomials with weights that are constant over runs of points.

A plaintext of period B slots has 2B distinct residues per limb, each repeated over N/2B contiguous
points. A plaintext-ciphertext matrix product is then one small integer GEMM per limb and run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange

from aegis_dask.ring.numba_backend.basis import gemm_block
from aegis_dask.ring.numba_backend.jit import kernel
from aegis_dask.ring.numba_backend.simd import vload, vstore

WIDTH = 256

_block4, _block1 = gemm_block(4, 2), gemm_block(1, 2)
_narrow4, _narrow1 = gemm_block(4, 1), gemm_block(1, 1)


@kernel(parallel=True)
def gemm(
    out: Any,
    x: Any,
    sx: int,
    weights: Any,
    shape: Any,
    strides: Any,
    polys: int,
    add: bool,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """``out[o, b, l] = sum_k weights[l, run, o, k] x[k, b, l] 2^-32``, or ``out +=`` with `add`.

    x is ``[k, poly, limb, N]`` with stride `sx` of its first axis, out ``[o, poly, limb, N]``;
    weights, in Montgomery form, have four axes with the given lengths and strides. All are flat,
    strides in elements.
    """
    limbs, runs, outs, inner = shape
    sl, sr, so, sk = strides
    length = n // runs
    width = min(length, WIDTH)
    per_run = length // width
    for i in prange(limbs * runs * per_run):
        l = i // (runs * per_run)
        r = (i // per_run) % runs
        start = r * length + (i % per_run) * width
        m = int64(l) * sl + int64(r) * sr
        qs, qi = np.empty(outs, np.uint32), np.empty(outs, np.uint32)
        qs[:], qi[:] = q[l], q_inv[l]
        y = np.empty(inner * width, np.uint32)
        d = np.empty(outs, np.int64)
        for b in range(polys):
            for k in range(inner):
                s = int64(k) * sx + int64(b * limbs + l) * n + start
                for c in range(0, width, 16):
                    vstore(y, k * width + c, vload(x, s + c))
            for o in range(outs):
                d[o] = (int64(o * polys + b) * limbs + l) * n + start
            last = outs - outs % 4
            if width == 16:
                for o in range(0, last, 4):
                    _narrow4(out, d, o, y, 0, 16, weights, m, so, sk, add, inner, qs, qi)
                for o in range(last, outs):
                    _narrow1(out, d, o, y, 0, 16, weights, m, so, sk, add, inner, qs, qi)
                continue
            for o in range(0, last, 4):
                for c in range(0, width, 32):
                    _block4(out, d, o, y, c, width, weights, m, so, sk, add, inner, qs, qi)
            for o in range(last, outs):
                for c in range(0, width, 32):
                    _block1(out, d, o, y, c, width, weights, m, so, sk, add, inner, qs, qi)
