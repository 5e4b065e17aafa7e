"""Base conversion: an integer matrix product with 64-bit accumulators.

Products are below 2^60: the first 16 fit, and before every eight more the sum is cut below
``2 p 2^32`` (`arithmetic.cut`), so a sum is below ``4 p 2^32`` when it is reduced, for any number
of sources.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange, uint32, uint64

from aegis_dask.ring.numba_backend import arithmetic, simd
from aegis_dask.ring.numba_backend.jit import generate, kernel
from aegis_dask.ring.numba_backend.simd import (
    qadd,
    qhigh_words,
    qmul,
    qsplat,
    veven,
    vload,
    vodd,
    vshift_right,
    vsplat,
    vstore,
)

COLUMNS = 512
"""Columns per block: 16 source rows of 512 words are 32 KiB, an L1 cache's worth."""


def accumulate_block(rows: int, vectors: int, reduce: str) -> Any:
    """``f(dst, d, j, y, c, width, mat, count, q, q_inv)``: `rows` targets x 16 `vectors` columns.

    ``d[r]`` are the offsets of the target rows, y holds `count` source rows of `width` words.
    `reduce` names the final reduction: canonical, or lazy for a result that is transformed next.
    """
    return generate(_block(rows, vectors, reduce, "", "mat[uint64({j}), i]", False), _NAMESPACE)


def gemm_block(rows: int, vectors: int) -> Any:
    """``f(dst, d, j, y, c, width, mat, m, mj, mi, add, count, q, q_inv)``: as above, canonical.

    The matrix is flat: element (j, i) is at ``m + j mj + i mi``. With `add` the result is added to
    what dst holds.
    """
    element = "mat[uint64(m + {j} * mj + int64(i) * mi)]"
    return generate(_block(rows, vectors, "reduce4", ", m, mj, mi, add", element, True), _NAMESPACE)


_NAMESPACE: dict[str, Any] = {
    **vars(simd),
    **vars(arithmetic),
    "uint64": uint64,
    "uint32": uint32,
    "int64": int64,
}


def _block(
    rows: int, vectors: int, reduce: str, arguments: str, element: str, addable: bool
) -> str:
    cells = [(r, k) for r in range(rows) for k in range(vectors)]
    lines = [f"def f(dst, d, j, y, c, width, mat{arguments}, count, q, q_inv):"]
    lines += ["    z = qsplat(uint64(0))"]
    lines += [f"    e{r}_{k} = z; o{r}_{k} = z" for r, k in cells]
    lines += ["    h = uint64(0)", "    n = uint64(count)", "    while h < n:"]
    lines += ["        if h >= uint64(16):"]
    for r, k in cells:
        lines.append(f"            e{r}_{k} = cut(e{r}_{k}, q[j + {r}])")
        lines.append(f"            o{r}_{k} = cut(o{r}_{k}, q[j + {r}])")
    lines += ["        for i in range(h, min(h + uint64(8), n)):"]
    for k in range(vectors):
        lines.append(f"            v = vload(y, i * width + c + {16 * k})")
        lines.append(f"            a{k} = veven(v); b{k} = vodd(v)")
    for r in range(rows):
        lines.append(f"            m_ = veven(vsplat({element.format(j=f'(j + {r})')}))")
        for k in range(vectors):
            lines.append(f"            e{r}_{k} = qadd(e{r}_{k}, qmul(a{k}, m_))")
            lines.append(f"            o{r}_{k} = qadd(o{r}_{k}, qmul(b{k}, m_))")
    lines += ["        h += uint64(8)"]
    for r in range(rows):
        lines.append(f"    p = vsplat(q[j + {r}]); p2 = vadd(p, p)")
        lines.append(f"    pi = vsplat(q_inv[j + {r}])")
        for k in range(vectors):
            at = f"d[j + {r}] + c + {16 * k}"
            lines.append(f"    t = {reduce}(e{r}_{k}, o{r}_{k}, pi, p, p2)")
            if addable:
                lines += ["    if add:", f"        t = add_mod(vload(dst, {at}), t, p)"]
            lines.append(f"    vstore(dst, {at}, t)")
    return "\n".join(lines)


block4, block1 = accumulate_block(4, 2, "reduce4"), accumulate_block(1, 2, "reduce4")
block4_lazy = accumulate_block(4, 2, "reduce4_lazy")
block1_lazy = accumulate_block(1, 2, "reduce4_lazy")


@kernel(parallel=True)
def convert(
    dst: Any,
    dst_rows: Any,
    src: Any,
    src_rows: Any,
    mat: Any,
    quotient: Any,
    q: Any,
    q_inv: Any,
    lazy: bool,
    n: int,
) -> None:
    """``dst[j] = sum_i mat[j, i] src[i] 2^-32 mod q_j`` (minus v times the last column).

    `dst_rows` ``[poly, j]``, `src_rows` ``[poly, i]`` are offsets in elements; q and q_inv those of
    the targets; `quotient`
    non-empty makes the conversion exact (`conversion.BaseConversion`). A `lazy` result lies in
    (0, 3q), for a transform that follows.
    """
    ni, nj = src_rows.shape[1], dst_rows.shape[1]
    exact = quotient.shape[0] > 0
    blocks = n // COLUMNS
    for item in prange(src_rows.shape[0] * blocks):
        poly, o = item // blocks, int64(item % blocks) * COLUMNS
        y = np.empty((ni + 1) * COLUMNS, np.uint32)
        for i in range(ni):
            s, t = src_rows[poly, i] + o, i * COLUMNS
            for c in range(0, COLUMNS, 16):
                vstore(y, t + c, vload(src, s + c))
        if exact:
            for c in range(0, COLUMNS, 16):
                even = odd = qsplat(uint64(1) << uint64(55))
                for i in range(ni):
                    v, m = vload(y, i * COLUMNS + c), veven(vsplat(quotient[i]))
                    even, odd = qadd(even, qmul(veven(v), m)), qadd(odd, qmul(vodd(v), m))
                vstore(y, ni * COLUMNS + c, vshift_right(qhigh_words(even, odd), 24))
        count = mat.shape[1]
        d = dst_rows[poly] + o
        last = nj - nj % 4
        if lazy:
            for j in range(0, last, 4):
                for c in range(0, COLUMNS, 32):
                    block4_lazy(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)
            for j in range(last, nj):
                for c in range(0, COLUMNS, 32):
                    block1_lazy(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)
        else:
            for j in range(0, last, 4):
                for c in range(0, COLUMNS, 32):
                    block4(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)
            for j in range(last, nj):
                for c in range(0, COLUMNS, 32):
                    block1(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)
