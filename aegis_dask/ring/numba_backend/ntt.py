"""Negacyclic number-theoretic transform of one limb, and of batches of limbs.

Cooley-Tukey forward (natural to bit-reversed order), Gentleman-Sande inverse; depth first, so that
a block stays in L1/L2 once it has been touched. Twiddles: ``w[i] = psi^brv(i)`` for i < N/16 as
scalars, the last four stages as vectors per block of 256 (`tables.py`).
"""

from __future__ import annotations

from typing import Any

from numba import int64, prange, uint32

from aegis_dask.ring.numba_backend.butterflies import (
    TAIL,
    TAIL_TWIDDLES,
    forward_rows,
    forward_tail,
    forward_tail_lazy,
    forward_tail_scale_sub,
    forward_tail_scale_sub_add,
    inverse_rows,
    inverse_rows_scaled,
    inverse_tail,
)
from aegis_dask.ring.numba_backend.jit import kernel
from aegis_dask.ring.numba_backend.simd import vsplat

_f2, _f3, _f4 = (forward_rows[r] for r in (2, 3, 4))
_i2, _i3, _i4 = (inverse_rows[r] for r in (2, 3, 4))
_s2, _s3, _s4 = (inverse_rows_scaled[r] for r in (2, 3, 4))


@kernel()
def _rows_forward(
    r: int, dst: Any, do: int, src: Any, so: int, n: int, w: Any, ws: Any, wo: int, k: int, q: int
) -> None:
    """R stages on the n words at `so`: rows of ``n >> r`` words."""
    p, p2 = vsplat(uint32(q)), vsplat(uint32(2 * q))
    st = n >> r
    if r == 4:
        for c in range(0, st, 16):
            _f4(dst, do + c, src, so + c, st, w, ws, wo, k, p, p2)
    elif r == 3:
        for c in range(0, st, 16):
            _f3(dst, do + c, src, so + c, st, w, ws, wo, k, p, p2)
    elif r == 2:
        for c in range(0, st, 16):
            _f2(dst, do + c, src, so + c, st, w, ws, wo, k, p, p2)


@kernel()
def _rows_inverse(r: int, x: Any, o: int, n: int, w: Any, ws: Any, wo: int, k: int, q: int) -> None:
    """R inverse stages in place on the n words at `o`."""
    p, p2 = vsplat(uint32(q)), vsplat(uint32(2 * q))
    st = n >> r
    if r == 4:
        for c in range(0, st, 16):
            _i4(x, o + c, x, o + c, st, w, ws, wo, k, p, p2)
    elif r == 3:
        for c in range(0, st, 16):
            _i3(x, o + c, x, o + c, st, w, ws, wo, k, p, p2)
    elif r == 2:
        for c in range(0, st, 16):
            _i2(x, o + c, x, o + c, st, w, ws, wo, k, p, p2)


@kernel()
def _rows_inverse_scaled(
    r: int, x: Any, o: int, n: int, w: Any, ws: Any, wo: int, q: int, c_: int, cs_: int
) -> None:
    """Last r inverse stages in place, times the constant c, canonical."""
    p, p2, v, vs = vsplat(uint32(q)), vsplat(uint32(2 * q)), vsplat(uint32(c_)), vsplat(uint32(cs_))
    st = n >> r
    if r == 4:
        for c in range(0, st, 16):
            _s4(x, o + c, x, o + c, st, w, ws, wo, 1, p, p2, v, vs)
    elif r == 3:
        for c in range(0, st, 16):
            _s3(x, o + c, x, o + c, st, w, ws, wo, 1, p, p2, v, vs)
    elif r == 2:
        for c in range(0, st, 16):
            _s2(x, o + c, x, o + c, st, w, ws, wo, 1, p, p2, v, vs)


CANONICAL, LAZY, SCALE_SUB, SCALE_SUB_ADD = 0, 1, 2, 3


@kernel()
def forward_limb(
    mode: int,
    dst: Any,
    do: int,
    x: Any,
    xo: int,
    src: Any,
    so: int,
    plan: Any,
    w: Any,
    ws: Any,
    vw: Any,
    vws: Any,
    prime: int,
    q: int,
    y: Any,
    yo: int,
    a: int,
    as_: int,
    z: Any,
    zo: int,
    c: int,
    cs: int,
) -> None:
    """Transform the limb at (src, so), [0, 4q), into (dst, do), with (x, xo) as its work space.

    `plan` is (log2 of the radices of three row passes, N). `mode` names the epilogue; (y, yo), a
    and (z, zo), c are its operands (`butterflies.forward_tail`). The three limbs may coincide.
    """
    n = int64(plan[3])
    wo = prime * (n // 16)
    vo = prime * (n // TAIL) * TAIL_TWIDDLES
    r1, r2, r3 = plan[0], plan[1], plan[2]
    p, p2 = vsplat(uint32(q)), vsplat(uint32(2 * q))
    va, vas, vc, vcs = vsplat(uint32(a)), vsplat(uint32(as_)), vsplat(uint32(c)), vsplat(uint32(cs))
    _rows_forward(r1, x, xo, src, so, n, w, ws, wo, 1, q)
    n1 = n >> r1
    n2 = n1 >> r2
    for g in range(1 << r1):
        if r2 > 0:
            k2 = (1 << r1) + g
            _rows_forward(r2, x, xo + g * n1, x, xo + g * n1, n1, w, ws, wo, k2, q)
        for h in range(1 << r2):
            o = g * n1 + h * n2
            if r3 > 0:
                k3 = (((1 << r1) + g) << r2) + h
                _rows_forward(r3, x, xo + o, x, xo + o, n2, w, ws, wo, k3, q)
            for t in range(o, o + n2, TAIL):
                b = t // TAIL
                k, ko = n // TAIL + b, vo + b * TAIL_TWIDDLES
                if mode == 0:
                    forward_tail(dst, do + t, x, xo + t, w, ws, wo, k, vw, vws, ko, p, p2)
                elif mode == 1:
                    forward_tail_lazy(dst, do + t, x, xo + t, w, ws, wo, k, vw, vws, ko, p, p2)
                elif mode == 2:
                    forward_tail_scale_sub(
                        dst, do + t, x, xo + t, w, ws, wo, k, vw, vws, ko, p, p2,
                        y, yo + t, va, vas,
                    )  # fmt: skip
                else:
                    forward_tail_scale_sub_add(
                        dst, do + t, x, xo + t, w, ws, wo, k, vw, vws, ko, p, p2,
                        y, yo + t, va, vas, z, zo + t, vc, vcs,
                    )  # fmt: skip


@kernel()
def inverse_limb(
    x: Any,
    xo: int,
    src: Any,
    so: int,
    plan: Any,
    iw: Any,
    iws: Any,
    ivw: Any,
    ivws: Any,
    prime: int,
    q: int,
    c: int,
    cs: int,
) -> None:
    """Inverse transform of the limb at (src, so), [0, 2q), into (x, xo), times c: [0, q).

    The factor 1/N is part of the constant c.
    """
    n = int64(plan[3])
    wo = prime * (n // 16)
    vo = prime * (n // TAIL) * TAIL_TWIDDLES
    r1, r2, r3 = plan[0], plan[1], plan[2]
    p, p2 = vsplat(uint32(q)), vsplat(uint32(2 * q))
    n1 = n >> r1
    n2 = n1 >> r2
    for g in range(1 << r1):
        for h in range(1 << r2):
            o = g * n1 + h * n2
            for t in range(o, o + n2, TAIL):
                b = t // TAIL
                k, ko = n // TAIL + b, vo + b * TAIL_TWIDDLES
                inverse_tail(x, xo + t, src, so + t, iw, iws, wo, k, ivw, ivws, ko, p, p2)
            if r3 > 0:
                k3 = (((1 << r1) + g) << r2) + h
                _rows_inverse(r3, x, xo + o, n2, iw, iws, wo, k3, q)
        if r2 > 0:
            _rows_inverse(r2, x, xo + g * n1, n1, iw, iws, wo, (1 << r1) + g, q)
    _rows_inverse_scaled(r1, x, xo, n, iw, iws, wo, q, c, cs)


@kernel(parallel=True)
def forward_batch(
    dst: Any,
    src: Any,
    polys: int,
    primes: Any,
    plan: Any,
    w: Any,
    ws: Any,
    vw: Any,
    vws: Any,
    q: Any,
) -> None:
    """``dst[b, l] = NTT(src[b, l])``, l over `primes`; flat arrays, canonical in and out."""
    n, limbs = int64(plan[3]), primes.shape[0]
    for l in prange(limbs):
        j = int64(primes[l])
        for b in range(polys):
            o = (b * limbs + l) * n
            forward_limb(
                0, dst, o, dst, o, src, o, plan, w, ws, vw, vws, j, q[j], src, 0, 0, 0, src, 0, 0, 0
            )


@kernel(parallel=True)
def inverse_batch(
    dst: Any,
    src: Any,
    polys: int,
    primes: Any,
    plan: Any,
    iw: Any,
    iws: Any,
    ivw: Any,
    ivws: Any,
    q: Any,
    c: Any,
    cs: Any,
) -> None:
    """``dst[b, l] = c[l] INTT(src[b, l]) N``, l over `primes`; flat arrays, canonical."""
    n, limbs = int64(plan[3]), primes.shape[0]
    for l in prange(limbs):
        j = int64(primes[l])
        for b in range(polys):
            o = (b * limbs + l) * n
            inverse_limb(dst, o, src, o, plan, iw, iws, ivw, ivws, j, q[j], c[l], cs[l])
