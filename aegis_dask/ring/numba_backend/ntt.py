"""Negacyclic number-theoretic transform of one limb, and of batches of limbs.

Cooley-Tukey forward (natural to bit-reversed order), Gentleman-Sande inverse; depth first, so that
a block stays in L1/L2 once it has been touched. What is done with a transformed block of 256 points
is a parameter of the forward transform: consumers work on the block while it is in L1.

``tables`` is the tuple (plan, w, ws, vw, vws): the plan holds log2 of the radices of three row
passes and N; ``w[i] = psi^brv(i)`` for i < N/16 are scalar twiddles, the last four stages have
vectors per block of 256 (`aegis_dask.ring.tables`).
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
    inverse_rows,
    inverse_rows_scaled,
    inverse_tail,
)
from aegis_dask.ring.numba_backend.jit import generate_call, kernel
from aegis_dask.ring.numba_backend.simd import vsplat

_f1, _f2, _f3, _f4 = (forward_rows[r] for r in (1, 2, 3, 4))
_i2, _i3, _i4 = (inverse_rows[r] for r in (2, 3, 4))
_s2, _s3, _s4 = (inverse_rows_scaled[r] for r in (2, 3, 4))


@kernel()
def rows_forward(
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
    elif r == 1:
        for c in range(0, st, 16):
            _f1(dst, do + c, src, so + c, st, w, ws, wo, k, p, p2)


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


_FORWARD = """
def f(x, xo, src, so, tables, prime, q{extra}):
    plan, w, ws, vw, vws = tables
    n = int64(plan[3])
    wo = prime * (n // 16)
    vo = prime * (n // TAIL) * TAIL_TWIDDLES
    r1, r2, r3 = plan[0], plan[1], plan[2]
    p, p2 = vsplat(uint32(q)), vsplat(uint32(2 * q))
    {setup}
    rows_forward(r1, x, xo, src, so, n, w, ws, wo, 1, q)
    n1 = n >> r1
    n2 = n1 >> r2
    for g in range(1 << r1):
        if r2 > 0:
            k2 = (1 << r1) + g
            rows_forward(r2, x, xo + g * n1, x, xo + g * n1, n1, w, ws, wo, k2, q)
        for h in range(1 << r2):
            o = g * n1 + h * n2
            if r3 > 0:
                k3 = (((1 << r1) + g) << r2) + h
                rows_forward(r3, x, xo + o, x, xo + o, n2, w, ws, wo, k3, q)
            for t in range(o, o + n2, TAIL):
                b = t // TAIL
                k, ko = n // TAIL + b, vo + b * TAIL_TWIDDLES
                {tail}
"""


def forward_transform(extra: str, setup: str, tail: str, namespace: dict[str, Any]) -> Any:
    """Return a transform of the limb at (src, so), [0, 4q), with (x, xo) as its work space.

    Parameters
    ----------
    extra
        Further arguments, ``", name, .."``.
    setup
        A statement before the loops.
    tail
        A statement for each block of 256 points at offset t of x, b its number; it calls one of
        the tails of `butterflies` with ``TAIL_ARGUMENTS``.
    namespace
        Names that these statements use.
    """
    source = _FORWARD.format(extra=extra, setup=setup, tail=tail)
    return generate_call(source, {**globals(), **namespace})


TAIL_ARGUMENTS = "x, xo + t, w, ws, wo, k, vw, vws, ko, p, p2"

forward_limb = forward_transform(
    ", dst, do",
    "pass",
    f"forward_tail(dst, do + t, {TAIL_ARGUMENTS})",
    {"forward_tail": forward_tail},
)
"""To (dst, do), canonical."""

forward_limb_lazy = forward_transform(
    "",
    "pass",
    f"forward_tail_lazy(x, xo + t, {TAIL_ARGUMENTS})",
    {"forward_tail_lazy": forward_tail_lazy},
)
"""In place, [0, 2q)."""


@kernel()
def inverse_limb(
    x: Any, xo: int, src: Any, so: int, tables: Any, prime: int, q: int, c: int, cs: int
) -> None:
    """Inverse transform of the limb at (src, so), [0, 2q), into (x, xo), times c: [0, q).

    The factor 1/N is part of the constant c; `tables` are those of the inverse.
    """
    plan, iw, iws, ivw, ivws = tables
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
def forward_batch(dst: Any, src: Any, polys: int, primes: Any, tables: Any, q: Any, n: int) -> None:
    """``dst[b, l] = NTT(src[b, l])``, l over `primes`; flat arrays, canonical in and out."""
    limbs = primes.shape[0]
    for i in prange(limbs * polys):
        l, b = i // polys, i % polys
        j, o = int64(primes[l]), (b * limbs + l) * n
        forward_limb(dst, o, src, o, tables, j, q[j], dst, o)


@kernel(parallel=True)
def inverse_batch(
    dst: Any, src: Any, polys: int, primes: Any, tables: Any, q: Any, c: Any, cs: Any, n: int
) -> None:
    """``dst[b, l] = c[l] INTT(src[b, l]) N``, l over `primes`; flat arrays, canonical."""
    limbs = primes.shape[0]
    for i in prange(limbs * polys):
        l, b = i // polys, i % polys
        j, o = int64(primes[l]), (b * limbs + l) * n
        inverse_limb(dst, o, src, o, tables, j, q[j], c[l], cs[l])
