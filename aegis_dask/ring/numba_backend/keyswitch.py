"""Base conversion, key inner product and division: the three parts of hybrid key switching.

Base conversion is an integer matrix product with 64-bit accumulators. Products are below 2^60: the
first 16 fit, and before every eight more the sum is cut below ``2 p 2^32`` (`arithmetic.cut`), so a
sum is below ``4 p 2^32`` when it is reduced, for any number of sources.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange, uint32, uint64

from aegis_dask.ring.numba_backend import arithmetic, simd
from aegis_dask.ring.numba_backend.arithmetic import reduce4, shoup_mod
from aegis_dask.ring.numba_backend.automorphism import permute_limb
from aegis_dask.ring.numba_backend.jit import generate, kernel
from aegis_dask.ring.numba_backend.ntt import forward_limb, inverse_limb
from aegis_dask.ring.numba_backend.simd import (
    qadd,
    qmul,
    qsplat,
    veven,
    vload,
    vodd,
    vsplat,
    vstore,
)

COLUMNS = 512
"""Columns per block: 16 source rows of 512 words are 32 KiB, an L1 cache's worth."""


def _block(rows: int, vectors: int) -> Any:
    """``f(dst, d, j, y, c, width, mat, count, q, q_inv)``: `rows` targets x 16 `vectors` columns.

    ``d[r]`` are the offsets of the target rows, y holds `count` source rows of `width` words.
    """
    ns: dict[str, Any] = {**vars(simd), **vars(arithmetic), "uint64": uint64, "uint32": uint32}
    cells = [(r, k) for r in range(rows) for k in range(vectors)]
    lines = ["def f(dst, d, j, y, c, width, mat, count, q, q_inv):"]
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
        lines.append(f"            m = veven(vsplat(mat[uint64(j + {r}), i]))")
        for k in range(vectors):
            lines.append(f"            e{r}_{k} = qadd(e{r}_{k}, qmul(a{k}, m))")
            lines.append(f"            o{r}_{k} = qadd(o{r}_{k}, qmul(b{k}, m))")
    lines += ["        h += uint64(8)"]
    for r in range(rows):
        lines.append(f"    p = vsplat(q[j + {r}]); p2 = vsplat(uint32(2 * q[j + {r}]))")
        lines.append(f"    pi = vsplat(q_inv[j + {r}])")
        for k in range(vectors):
            value = f"reduce4(e{r}_{k}, o{r}_{k}, pi, p, p2)"
            lines.append(f"    vstore(dst, d[j + {r}] + c + {16 * k}, {value})")
    return generate("\n".join(lines), ns)


block4, block1 = _block(4, 2), _block(1, 2)


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
    n: int,
) -> None:
    """``dst[j] = sum_i mat[j, i] src[i] 2^-32 mod q_j`` (minus v times the last column).

    `dst_rows`, `src_rows` are offsets in elements; q and q_inv those of the targets; `quotient`
    non-empty makes the conversion exact (`conversion.BaseConversion`).
    """
    ni, nj = src_rows.shape[0], dst_rows.shape[0]
    exact = quotient.shape[0] > 0
    for block in prange(n // COLUMNS):
        o = int64(block) * COLUMNS
        y = np.empty((ni + 1) * COLUMNS, np.uint32)
        for i in range(ni):
            s, t = src_rows[i] + o, i * COLUMNS
            for c in range(0, COLUMNS, 16):
                vstore(y, t + c, vload(src, s + c))
        if exact:
            for c in range(COLUMNS):
                acc = uint64(1) << uint64(55)
                for i in range(ni):
                    acc += uint64(y[i * COLUMNS + c]) * uint64(quotient[i])
                y[ni * COLUMNS + c] = uint32(acc >> uint64(56))
        count = mat.shape[1]
        d = dst_rows + o
        last = nj - nj % 4
        for j in range(0, last, 4):
            for c in range(0, COLUMNS, 32):
                block4(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)
        for j in range(last, nj):
            for c in range(0, COLUMNS, 32):
                block1(dst, d, j, y, c, COLUMNS, mat, count, q, q_inv)


@kernel(parallel=True)
def inner_product(
    acc: Any,
    raised: Any,
    own: Any,
    own_limbs: int,
    key_b: Any,
    key_a: Any,
    key_limbs: int,
    first_digit: int,
    digits: int,
    digit_of: Any,
    limbs: Any,
    batch: int,
    transform: bool,
    plan: Any,
    w: Any,
    ws: Any,
    vw: Any,
    vws: Any,
    q: Any,
    q_inv: Any,
) -> None:
    """``acc[b, 0/1, j] = sum_d x_d[j] key_b/a[d, j] 2^-32``, the key in Montgomery form.

    ``x_d[j]`` is ``own[b, j]`` on the digit's own limbs, else ``raised[b, d, j]``, which is
    transformed in place first (lazily, [0, 2q)) if `transform`. All work on limb j happens while it
    is in the L2 cache. At most eight digits: sums of ``2p p`` stay below 2^64.
    """
    n, nl = int64(plan[3]), limbs.shape[0]
    for k in prange(nl):
        j = int64(limbs[k])
        p, p2, pi = vsplat(q[j]), vsplat(uint32(2 * q[j])), vsplat(q_inv[j])
        xo = np.empty(digits, np.int64)
        ko = np.empty(digits, np.int64)
        for b in range(batch):
            for d in range(digits):
                ko[d] = ((first_digit + d) * key_limbs + j) * n
                xo[d] = ((b * digits + d) * nl + k) * n
                if transform and digit_of[k] != d:
                    forward_limb(
                        1, raised, xo[d], raised, xo[d], raised, xo[d], plan, w, ws, vw, vws, j,
                        q[j], raised, 0, 0, 0, raised, 0, 0, 0,
                    )  # fmt: skip
            o0, o1 = (2 * b * nl + k) * n, ((2 * b + 1) * nl + k) * n
            for c in range(0, n, 16):
                e0 = o_0 = e1 = o_1 = qsplat(uint64(0))
                for d in range(digits):
                    if digit_of[k] == d:
                        v = vload(own, (b * own_limbs + k) * n + c)
                    else:
                        v = vload(raised, xo[d] + c)
                    kb, ka = vload(key_b, ko[d] + c), vload(key_a, ko[d] + c)
                    even, odd = veven(v), vodd(v)
                    e0, o_0 = qadd(e0, qmul(even, veven(kb))), qadd(o_0, qmul(odd, vodd(kb)))
                    e1, o_1 = qadd(e1, qmul(even, veven(ka))), qadd(o_1, qmul(odd, vodd(ka)))
                vstore(acc, o0 + c, reduce4(e0, o_0, pi, p, p2))
                vstore(acc, o1 + c, reduce4(e1, o_1, pi, p, p2))


@kernel(parallel=True)
def divide_sources(
    out: Any,
    x: Any,
    x_limbs: int,
    rows: Any,
    primes: Any,
    polys: int,
    factor: Any,
    factor_s: Any,
    addend: Any,
    addend_index: Any,
    addend_limbs: int,
    addend_factor: Any,
    addend_factor_s: Any,
    plan: Any,
    iw: Any,
    iws: Any,
    ivw: Any,
    ivws: Any,
    q: Any,
) -> None:
    """``out[poly, i] = factor[i] N INTT(x[poly, rows[i]] + addend_factor[i] addend)``.

    ``addend_index[poly]`` is the polynomial of the addend, or -1 for none.
    """
    n, count = int64(plan[3]), rows.shape[0]
    for i in prange(count * polys):
        s, b = i // polys, i % polys
        j = int64(primes[s])
        o, ox = (b * count + s) * n, (b * x_limbs + rows[s]) * n
        if addend_index[b] >= 0 and addend_factor[s] != 0:
            p = vsplat(q[j])
            f, fs = vsplat(addend_factor[s]), vsplat(addend_factor_s[s])
            oa = (addend_index[b] * addend_limbs + rows[s]) * n
            for c in range(0, n, 16):
                t = shoup_mod(vload(addend, oa + c), f, fs, p)
                vstore(out, o + c, arithmetic.add_mod(vload(x, ox + c), t, p))
            inverse_limb(out, o, out, o, plan, iw, iws, ivw, ivws, j, q[j], factor[s], factor_s[s])
        else:
            inverse_limb(out, o, x, ox, plan, iw, iws, ivw, ivws, j, q[j], factor[s], factor_s[s])


@kernel(parallel=True)
def divide_targets(
    out: Any,
    remainder: Any,
    x: Any,
    x_limbs: int,
    rows: Any,
    primes: Any,
    polys: int,
    factor: Any,
    factor_s: Any,
    addend: Any,
    addend_index: Any,
    addend_limbs: int,
    addend_factor: Any,
    addend_factor_s: Any,
    permuted: bool,
    blocks: Any,
    patterns: Any,
    plan: Any,
    w: Any,
    ws: Any,
    vw: Any,
    vws: Any,
    q: Any,
) -> None:
    """``out = factor x - NTT(remainder) + addend_factor addend``, then an automorphism.

    `remainder` is overwritten. Limbs that enter have factor 0.
    """
    n, limbs = int64(plan[3]), rows.shape[0]
    for i in prange(limbs * polys):
        l, b = i // polys, i % polys
        j = int64(primes[l])
        o = (b * limbs + l) * n
        row = max(rows[l], int64(0))
        ox, oz = (b * x_limbs + row) * n, (addend_index[b] * addend_limbs + row) * n
        mode = 3 if addend_index[b] >= 0 else 2
        if mode == 2:
            oz = 0
        if permuted:
            forward_limb(
                mode, remainder, o, remainder, o, remainder, o, plan, w, ws, vw, vws, j, q[j],
                x, ox, factor[l], factor_s[l], addend, oz, addend_factor[l], addend_factor_s[l],
            )  # fmt: skip
            permute_limb(out, o, remainder, o, blocks, patterns, n)
        else:
            forward_limb(
                mode, out, o, remainder, o, remainder, o, plan, w, ws, vw, vws, j, q[j],
                x, ox, factor[l], factor_s[l], addend, oz, addend_factor[l], addend_factor_s[l],
            )  # fmt: skip
