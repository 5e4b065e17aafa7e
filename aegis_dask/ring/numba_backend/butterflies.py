"""Unrolled radix-4/8/16 passes and the 256-point tail of the negacyclic transform.

The transform of size N is ``log2 N - 8`` stages in *row passes* (2, 3 or 4 stages in registers on
rows that are a multiple of 256 words apart, scalar twiddles) and a *tail* of eight stages on 256
contiguous words: four stages on 16 rows, a 16 x 16 lane transpose, four stages with vector
twiddles, and the transpose back, so that the evaluation domain stands in bit-reversed order.

Ranges: forward butterflies (Harvey) take and give [0, 4p); inverse ones take and give [0, 2p).
"""

from __future__ import annotations

from typing import Any

from numba import uint32

from aegis_dask.ring.numba_backend import arithmetic, simd
from aegis_dask.ring.numba_backend.jit import generate, inline
from aegis_dask.ring.numba_backend.simd import vadd, vmin, vshoup, vshoup_splat, vsub

ROWS = 16
TAIL = 256
TAIL_TWIDDLES = 15 * ROWS
"""Vector twiddles of one tail block: 15 vectors of 16 lanes."""


@inline
def forward_butterfly(x: Any, y: Any, w: Any, ws: Any, p: Any, p2: Any) -> Any:
    """(x, y) -> (x + w y, x - w y); all in [0, 4p)."""
    x = vmin(x, vsub(x, p2))
    t = vshoup(y, w, ws, p)
    return vadd(x, t), vsub(vadd(x, p2), t)


@inline
def forward_butterfly_splat(x: Any, y: Any, w: Any, ws: Any, p: Any, p2: Any) -> Any:
    """`forward_butterfly` with one twiddle for all lanes."""
    x = vmin(x, vsub(x, p2))
    t = vshoup_splat(y, w, ws, p)
    return vadd(x, t), vsub(vadd(x, p2), t)


@inline
def inverse_butterfly_splat(x: Any, y: Any, w: Any, ws: Any, p: Any, p2: Any) -> Any:
    """`inverse_butterfly` with one twiddle for all lanes."""
    s = vadd(x, y)
    return vmin(s, vsub(s, p2)), vshoup_splat(vsub(vadd(x, p2), y), w, ws, p)


@inline
def inverse_butterfly(x: Any, y: Any, w: Any, ws: Any, p: Any, p2: Any) -> Any:
    """(x, y) -> (x + y, w (x - y)); all in [0, 2p)."""
    s = vadd(x, y)
    return vmin(s, vsub(s, p2)), vshoup(vsub(vadd(x, p2), y), w, ws, p)


_NAMESPACE: dict[str, Any] = {
    **vars(simd),
    **vars(arithmetic),
    "forward_butterfly": forward_butterfly,
    "forward_butterfly_splat": forward_butterfly_splat,
    "inverse_butterfly": inverse_butterfly,
    "inverse_butterfly_splat": inverse_butterfly_splat,
    "uint32": uint32,
}


def _stage(stage: int, log_rows: int, forward: bool, vector: bool) -> list[str]:
    """One stage across registers; `stage` counts from the widest butterflies."""
    half = (1 << log_rows) >> (stage + 1)
    name = ("forward" if forward else "inverse") + "_butterfly" + ("" if vector else "_splat")
    lines = []
    for m in range(1 << stage):
        if vector:
            i = ROWS * ((1 << stage) + m - 1)
            lines.append(f"    a = vload(vw, ko + {i}); b = vload(vws, ko + {i})")
        else:
            at = f"wo + (k << {stage}) + {m}"
            lines.append(f"    a = vsplat(w[{at}]); b = vsplat(ws[{at}])")
        for j in range(half):
            i0, i1 = 2 * half * m + j, 2 * half * m + j + half
            lines.append(f"    x{i0}, x{i1} = {name}(x{i0}, x{i1}, a, b, p, p2)")
    return lines


def _transpose() -> list[str]:
    """16 x 16 lane transpose in four steps."""
    lines, d = [], ROWS // 2
    while d:
        for i in range(ROWS):
            if not i & d:
                j = i + d
                lines.append(
                    f"    t = vinterleave(x{i}, x{j}, {d}); "
                    f"x{j} = vinterleave(x{i}, x{j}, {-d}); x{i} = t"
                )
        d //= 2
    return lines


def _row_pass(log_rows: int, forward: bool, scaled: bool = False) -> Any:
    """``f(dst, do, src, so, st, w, ws, wo, k, p, p2[, c, cs])``: one column of 16 lanes.

    With `scaled` the result is multiplied by the constant c and canonical (end of the inverse).
    """
    extra = ", c, cs" if scaled else ""
    lines = [f"def f(dst, do, src, so, st, w, ws, wo, k, p, p2{extra}):"]
    rows = 1 << log_rows
    lines += [f"    x{i} = vload(src, so + {i} * st)" for i in range(rows)]
    for s in range(log_rows) if forward else reversed(range(log_rows)):
        lines += _stage(s, log_rows, forward, vector=False)
    for i in range(rows):
        value = f"shoup_mod(x{i}, c, cs, p)" if scaled else f"x{i}"
        lines.append(f"    vstore(dst, do + {i} * st, {value})")
    return generate("\n".join(lines), _NAMESPACE)


def _forward_tail(epilogue: str) -> Any:
    """``f(dst, do, x, xo, w, ws, wo, k, vw, vws, ko, p, p2, ...)``: last eight stages.

    The epilogue says what is stored for the transform t in [0, 4p):

    ``canonical``
        t in [0, p).
    ``lazy``
        t in [0, 2p), for an inner product that reduces anyway.
    ``scale_sub``
        ``a * y - t`` in [0, p), y read at (y, yo), a constant a.
    ``scale_sub_add``
        ``a * y - t + c * z`` in [0, p), z read at (z, zo), a constant c.
    """
    extra = {
        "canonical": "",
        "lazy": "",
        "scale_sub": ", y, yo, a_, as_",
        "scale_sub_add": ", y, yo, a_, as_, z, zo, c_, cs_",
    }[epilogue]
    lines = [f"def f(dst, do, x, xo, w, ws, wo, k, vw, vws, ko, p, p2{extra}):"]
    lines += [f"    x{i} = vload(x, xo + {16 * i})" for i in range(ROWS)]
    for s in range(4):
        lines += _stage(s, 4, forward=True, vector=False)
    lines += _transpose()
    for s in range(4):
        lines += _stage(s, 4, forward=True, vector=True)
    lines += _transpose()
    for i in range(ROWS):
        o = 16 * i
        if epilogue == "canonical":
            lines.append(f"    t = canonical4(x{i}, p, p2)")
        else:
            lines.append(f"    t = vmin(x{i}, vsub(x{i}, p2))")
        if epilogue.startswith("scale_sub"):
            # a y in [0, 2p), t in [0, 2p): a y - t + 2p in (0, 4p)
            lines.append(f"    t = vsub(vadd(vshoup(vload(y, yo + {o}), a_, as_, p), p2), t)")
            if epilogue == "scale_sub_add":
                lines.append("    t = vmin(t, vsub(t, p2))")
                lines.append(f"    t = vadd(t, vshoup(vload(z, zo + {o}), c_, cs_, p))")
            lines.append("    t = canonical4(t, p, p2)")
        lines.append(f"    vstore(dst, do + {o}, t)")
    return generate("\n".join(lines), _NAMESPACE)


def _inverse_tail() -> Any:
    """``f(dst, do, src, so, w, ws, wo, k, vw, vws, ko, p, p2)``: first eight inverse stages."""
    lines = ["def f(dst, do, x, xo, w, ws, wo, k, vw, vws, ko, p, p2):"]
    lines += [f"    x{i} = vload(x, xo + {16 * i})" for i in range(ROWS)]
    lines += _transpose()
    for s in reversed(range(4)):
        lines += _stage(s, 4, forward=False, vector=True)
    lines += _transpose()
    for s in reversed(range(4)):
        lines += _stage(s, 4, forward=False, vector=False)
    lines += [f"    vstore(dst, do + {16 * i}, x{i})" for i in range(ROWS)]
    return generate("\n".join(lines), _NAMESPACE)


forward_rows = {r: _row_pass(r, forward=True) for r in (1, 2, 3, 4)}
inverse_rows = {r: _row_pass(r, forward=False) for r in (2, 3, 4)}
inverse_rows_scaled = {r: _row_pass(r, forward=False, scaled=True) for r in (2, 3, 4)}
forward_tail = _forward_tail("canonical")
forward_tail_lazy = _forward_tail("lazy")
forward_tail_scale_sub = _forward_tail("scale_sub")
forward_tail_scale_sub_add = _forward_tail("scale_sub_add")
inverse_tail = _inverse_tail()
