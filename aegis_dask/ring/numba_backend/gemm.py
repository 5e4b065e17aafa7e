"""Modular matrix products of polynomials with weights that are constant over runs of points.

A plaintext of period B slots has 2B distinct residues per limb, each repeated over N/2B contiguous
points. A plaintext-ciphertext matrix product is then one small integer GEMM per limb and run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange

from aegis_dask.ring.numba_backend.basis import block1, block4
from aegis_dask.ring.numba_backend.jit import kernel
from aegis_dask.ring.numba_backend.simd import vload, vstore

MIN_RUN = 32
WIDTH = 256


@kernel(parallel=True)
def gemm(out: Any, x: Any, weights: Any, polys: int, q: Any, q_inv: Any, n: int) -> None:
    """``out[o, b, l] = sum_k weights[l, run, o, k] x[k, b, l] 2^-32``, weights in Montgomery form.

    x is ``[k, poly, limb, N]``, out ``[o, poly, limb, N]``, both flat.
    """
    limbs, runs, outs, inner = weights.shape
    length = n // runs
    width = min(length, WIDTH)
    per_run = length // width
    for i in prange(limbs * runs * per_run):
        l = i // (runs * per_run)
        r = (i // per_run) % runs
        start = r * length + (i % per_run) * width
        mat = weights[l, r]
        qs, qi = np.empty(outs, np.uint32), np.empty(outs, np.uint32)
        qs[:], qi[:] = q[l], q_inv[l]
        y = np.empty(inner * width, np.uint32)
        d = np.empty(outs, np.int64)
        for b in range(polys):
            for k in range(inner):
                s = (int64(k * polys + b) * limbs + l) * n + start
                for c in range(0, width, 16):
                    vstore(y, k * width + c, vload(x, s + c))
            for o in range(outs):
                d[o] = (int64(o * polys + b) * limbs + l) * n + start
            last = outs - outs % 4
            for o in range(0, last, 4):
                for c in range(0, width, 32):
                    block4(out, d, o, y, c, width, mat, inner, qs, qi)
            for o in range(last, outs):
                for c in range(0, width, 32):
                    block1(out, d, o, y, c, width, mat, inner, qs, qi)
