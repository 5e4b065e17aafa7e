"""Sums of tensor products of ciphertexts: matrix products of encrypted matrices.

With one left operand each word of the right one is used once, and the kernel is bound by the memory
that it streams; several left operands share it. Sums stay in 64 bits and are reduced once: products
are below p^2 < 2^60, and before every eight more a sum is cut below ``2 p 2^32``
(`arithmetic.cut`), so it stays below ``4 p 2^32`` for any number of terms.
"""

from __future__ import annotations

from typing import Any

from numba import get_thread_id, int64, prange, uint32, uint64

from aegis_dask.ring.numba_backend import arithmetic, simd
from aegis_dask.ring.numba_backend.arithmetic import montgomery_product, reduce4_lazy
from aegis_dask.ring.numba_backend.jit import generate, kernel
from aegis_dask.ring.numba_backend.simd import qload, vsplat, vstore

WIDTH = 1024
"""Points per block: a page of each row, long enough for the memory to stream."""
CHUNK = 8
"""Terms per pass over a block: few enough rows to be streamed at the same time."""
OUTPUTS = 4
"""Right operands that share a chunk of the left ones while it is in the cache."""
ROWS = 4
"""Left operands that share a chunk of the right ones."""


def sums_size(n: int) -> int:
    """Return the number of 64-bit words that a thread needs for its sums."""
    return OUTPUTS * ROWS * 3 * min(n, WIDTH)


def _add_chunk(rows: int) -> Any:
    """``f(acc, a, sa, first, x, ox, sr, sx, y, oy, sy, terms, step, width, p)``.

    Adds products of up to `CHUNK` terms to the sums of one right and `rows` left operands; `sa` and
    `sr` are the strides of acc and x from one left operand to the next. Sums of 16 points are six
    vectors in acc: components 0, 1, 2, of even and of odd points each.
    """
    ns: dict[str, Any] = {**vars(simd), **vars(arithmetic), "uint64": uint64}
    sums = [f"{h}{c}_{r}" for r in range(rows) for c in range(3) for h in "eo"]
    place = {s: f"b + {int(s[3:])} * sa + {16 * int(s[1]) + 8 * (s[0] == 'o')}" for s in sums}
    lines = ["def f(acc, a, sa, first, x, ox, sr, sx, y, oy, sy, terms, step, width, p):"]
    lines += ["    for c in range(0, width, 16):", "        b = a + 3 * c", "        if first:"]
    lines += [f"            {s} = qsplat(uint64(0))" for s in sums]
    lines += ["        else:"]
    lines += [f"            {s} = cut(qload(acc, {place[s]}), p)" for s in sums]
    lines += [f"        start, stop = 0, min(terms, {CHUNK // 2})"]
    lines += ["        while start < terms:"]
    lines += ["            if start > 0:"]  # each term adds two products to component 1
    lines += [f"                {s} = cut({s}, p)" for s in sums if s[1] == "1"]
    lines += ["            for k in range(start, stop):"]
    lines += ["                i, j = ox + k * sx + c, oy + k * sy + c"]
    lines += ["                y0, y1 = vload(y, j), vload(y, j + step)"]
    for r in range(rows):
        at = f"i + {r} * sr"
        lines.append(f"                x0_{r}, x1_{r} = vload(x, {at}), vload(x, {at} + step)")
    for h, half in (("e", "veven"), ("o", "vodd")):
        lines.append(f"                u, v = {half}(y0), {half}(y1)")
        for r in range(rows):
            lines.append(f"                s, t = {half}(x0_{r}), {half}(x1_{r})")
            lines.append(f"                {h}0_{r} = qadd({h}0_{r}, qmul(s, u))")
            lines.append(f"                {h}1_{r} = qadd({h}1_{r}, qmul(s, v))")
            lines.append(f"                {h}1_{r} = qadd({h}1_{r}, qmul(t, u))")
            lines.append(f"                {h}2_{r} = qadd({h}2_{r}, qmul(t, v))")
    lines += ["            start, stop = stop, terms"]
    lines += [f"        qstore(acc, {place[s]}, {s})" for s in sums]
    return generate("\n".join(lines), ns)


_add1, _add2 = _add_chunk(1), _add_chunk(2)


@kernel(parallel=True)
def contract(
    out: Any,
    sums: Any,
    sums_size: int,
    x: Any,
    sx_row: int,
    sx: int,
    y: Any,
    sy_output: int,
    sy: int,
    rows: int,
    outs: int,
    terms: int,
    q: Any,
    q_inv: Any,
    r2: Any,
    n: int,
) -> None:
    """``out[r, o] = sum_k x[r, k] y[o, k]``: from ``[r, k, 2]`` and ``[o, k, 2]`` to ``[r, o, 3]``.

    Flat arrays; `sx_row`, `sx`, `sy_output`, `sy` are the strides of the leading axes in elements,
    `sums` has `sums_size` words for each thread (see `sums_size`), `r2` is ``2^64 mod q``.
    """
    limbs = q.shape[0]
    step, width = limbs * n, min(n, WIDTH)
    blocks, groups = n // width, (outs + OUTPUTS - 1) // OUTPUTS
    size = 3 * width
    for i in prange(limbs * blocks * groups):
        l, point, group = i // (blocks * groups), i // groups % blocks, i % groups
        start = int64(l * n + point * width)
        o0 = group * OUTPUTS
        o1 = min(outs, o0 + OUTPUTS)
        base = get_thread_id() * sums_size
        p, p2, pi = vsplat(q[l]), vsplat(uint32(2 * q[l])), vsplat(q_inv[l])
        rr = vsplat(r2[l])
        for r0 in range(0, rows, ROWS):
            r1 = min(rows, r0 + ROWS)
            for k in range(0, terms, CHUNK):
                count = min(CHUNK, terms - k)
                for o in range(o0, o1):
                    oy = start + o * sy_output + k * sy
                    for r in range(r0, r1, 2):
                        ox = start + r * sx_row + k * sx
                        a = base + ((o - o0) * ROWS + r - r0) * size
                        if r + 1 < r1:
                            _add2(
                                sums, a, size, k == 0, x, ox, sx_row, sx, y, oy, sy, count, step,
                                width, q[l],
                            )  # fmt: skip
                        else:
                            _add1(
                                sums, a, size, k == 0, x, ox, sx_row, sx, y, oy, sy, count, step,
                                width, q[l],
                            )  # fmt: skip
            for o in range(o0, o1):
                for r in range(r0, r1):
                    to = start + 3 * (r * outs + o) * step
                    for c in range(0, width, 16):
                        b = base + ((o - o0) * ROWS + r - r0) * size + 3 * c
                        for h in range(3):
                            e, d = qload(sums, b + 16 * h), qload(sums, b + 16 * h + 8)
                            t = reduce4_lazy(e, d, pi, p, p2)
                            vstore(out, to + h * step + c, montgomery_product(t, rr, pi, p, p2))
