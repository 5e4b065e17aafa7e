"""Key inner product and division: hybrid key switching after the digits have been raised.

`inner_product`, `divide_sources` and `divide_targets` are the steps, for hoisting; `switch_sources`
and `switch_targets` fuse them limb by limb, so that sums do not leave the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import get_thread_id, int64, prange, uint32, uint64

from aegis_dask.ring.numba_backend import arithmetic
from aegis_dask.ring.numba_backend.arithmetic import reduce4, shoup_mod
from aegis_dask.ring.numba_backend.automorphism import permute_block
from aegis_dask.ring.numba_backend.butterflies import (
    forward_tail_lazy,
    forward_tail_scale_sub,
    forward_tail_scale_sub_add,
)
from aegis_dask.ring.numba_backend.jit import inline, kernel
from aegis_dask.ring.numba_backend.ntt import (
    TAIL_ARGUMENTS,
    forward_limb_lazy,
    forward_transform,
    inverse_limb,
)
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


@inline
def _accumulate(
    acc: Any,
    acc_rows: Any,
    x: Any,
    x_rows: Any,
    own: Any,
    own_row: int,
    own_digit: int,
    key_b: Any,
    key_a: Any,
    key_rows: Any,
    start: int,
    stop: int,
    q: int,
    q_inv: int,
) -> None:
    """``acc[0/1] = sum_d x_d key_b/a[d] 2^-32`` on the points [start, stop) of one limb.

    The rows of acc may be rows of x.
    """
    p, p2, pi = vsplat(uint32(q)), vsplat(uint32(2 * q)), vsplat(uint32(q_inv))
    for c in range(start, stop, 16):
        e0 = o0 = e1 = o1 = qsplat(uint64(0))
        for d in range(x_rows.shape[0]):
            v = vload(own, own_row + c) if d == own_digit else vload(x, x_rows[d] + c)
            kb, ka = vload(key_b, key_rows[d] + c), vload(key_a, key_rows[d] + c)
            even, odd = veven(v), vodd(v)
            e0, o0 = qadd(e0, qmul(even, veven(kb))), qadd(o0, qmul(odd, vodd(kb)))
            e1, o1 = qadd(e1, qmul(even, veven(ka))), qadd(o1, qmul(odd, vodd(ka)))
        vstore(acc, acc_rows[0] + c, reduce4(e0, o0, pi, p, p2))
        vstore(acc, acc_rows[1] + c, reduce4(e1, o1, pi, p, p2))


_forward_inner = forward_transform(
    ", acc, acc_rows, x_rows, own, own_row, own_digit, key_b, key_a, key_rows, q_inv",
    "pass",
    f"""
                forward_tail_lazy(x, xo + t, {TAIL_ARGUMENTS})
                _accumulate(acc, acc_rows, x, x_rows, own, own_row, own_digit, key_b, key_a,
                            key_rows, t, t + TAIL, q, q_inv)
""",
    {"forward_tail_lazy": forward_tail_lazy, "_accumulate": _accumulate},
)
"""Transform the last digit of a limb and form the inner product of each block right after it."""


@kernel()
def _inner_limb(
    acc: Any,
    acc_rows: Any,
    work: Any,
    work_rows: Any,
    raised: Any,
    raised_rows: Any,
    own: Any,
    own_row: int,
    own_digit: int,
    key_b: Any,
    key_a: Any,
    key_rows: Any,
    tables: Any,
    j: int,
    q: int,
    q_inv: int,
) -> None:
    """Transform the digits of one limb into `work` (which may be `raised`), then accumulate."""
    digits = raised_rows.shape[0]
    last = digits - 1 if own_digit != digits - 1 else digits - 2
    for d in range(last):
        if d != own_digit:
            forward_limb_lazy(work, work_rows[d], raised, raised_rows[d], tables, j, q)
    if last >= 0:
        _forward_inner(
            work, work_rows[last], raised, raised_rows[last], tables, j, q,
            acc, acc_rows, work_rows, own, own_row, own_digit, key_b, key_a, key_rows, q_inv,
        )  # fmt: skip
    else:
        n = int64(tables[0][3])
        _accumulate(
            acc, acc_rows, work, work_rows, own, own_row, own_digit, key_b, key_a, key_rows,
            0, n, q, q_inv,
        )  # fmt: skip


@kernel(parallel=True)
def inner_product(
    acc: Any,
    raised: Any,
    own: Any,
    own_limbs: int,
    key_b: Any,
    key_a: Any,
    key_index: Any,
    digit_of: Any,
    limbs: Any,
    batch: int,
    transform: bool,
    tables: Any,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """``acc[b, 0/1, j] = sum_d x_d[j] key_b/a[d, j] 2^-32``, the key in Montgomery form.

    Row ``key_index[d, k]`` of the key belongs to digit d and limb ``j = limbs[k]``. ``x_d[j]`` is
    ``own[b, j]`` on the digit's own limbs, else ``raised[b, d, j]``, which is
    transformed in place first (lazily, [0, 2q)) if `transform`. All work on limb j happens while it
    is in the L2 cache. At most eight digits: sums of ``2p p`` stay below 2^64.
    """
    nl, digits = limbs.shape[0], key_index.shape[0]
    for k in prange(nl):
        j = int64(limbs[k])
        x_rows = np.empty(digits, np.int64)
        key_rows = np.empty(digits, np.int64)
        acc_rows = np.empty(2, np.int64)
        own_digit = int64(digit_of[k])
        for b in range(batch):
            own_row = (b * own_limbs + k) * n
            acc_rows[0], acc_rows[1] = (2 * b * nl + k) * n, ((2 * b + 1) * nl + k) * n
            for d in range(digits):
                key_rows[d] = key_index[d, k] * n
                x_rows[d] = ((b * digits + d) * nl + k) * n
            if transform:
                _inner_limb(
                    acc, acc_rows, raised, x_rows, raised, x_rows, own, own_row, own_digit,
                    key_b, key_a, key_rows, tables, j, q[j], q_inv[j],
                )  # fmt: skip
            else:
                _accumulate(
                    acc, acc_rows, raised, x_rows, own, own_row, own_digit, key_b, key_a, key_rows,
                    0, n, q[j], q_inv[j],
                )  # fmt: skip


@kernel()
def _inner_to_work(
    work: Any,
    work_offset: int,
    acc_rows: Any,
    raised: Any,
    own: Any,
    own_limbs: int,
    key_b: Any,
    key_a: Any,
    key_index: Any,
    digit_of: Any,
    limbs: Any,
    b: int,
    k: int,
    tables: Any,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """Inner product of limb k in a thread's work space, at the rows that it writes to `acc_rows`.

    Nothing but the key is read from memory more than once, and nothing is written to it: the
    digits are transformed into the work space, and the sums overwrite two of them there.
    """
    j = int64(limbs[k])
    own_digit, digits = int64(digit_of[k]), key_index.shape[0]
    raised_rows = np.empty(digits, np.int64)
    work_rows = np.empty(digits, np.int64)
    key_rows = np.empty(digits, np.int64)
    place = work_offset
    for d in range(digits):
        key_rows[d] = key_index[d, k] * n
        raised_rows[d] = ((b * digits + d) * limbs.shape[0] + k) * n
        work_rows[d] = place
        if d != own_digit:
            place += n
    # The first two places hold digits, or nothing yet: a sum may overwrite its own operands.
    acc_rows[0], acc_rows[1] = work_offset, work_offset + n
    _inner_limb(
        work, acc_rows, work, work_rows, raised, raised_rows, own, (b * own_limbs + k) * n,
        own_digit, key_b, key_a, key_rows, tables, j, q[j], q_inv[j],
    )  # fmt: skip


@kernel(parallel=True)
def switch_sources(
    out: Any,
    work: Any,
    work_size: int,
    raised: Any,
    own: Any,
    own_limbs: int,
    key_b: Any,
    key_a: Any,
    key_index: Any,
    digit_of: Any,
    limbs: Any,
    batch: int,
    rows: Any,
    factor: Any,
    factor_s: Any,
    addend: Any,
    addend_count: int,
    addend_limbs: int,
    addend_factor: Any,
    addend_factor_s: Any,
    tables: Any,
    inverse_tables: Any,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """`inner_product` and `divide_sources` in one, on the limbs that leave: ``out[b, 2, source]``.

    The addend ``[b, addend_count, limb, N]`` goes to the first components.
    """
    count = rows.shape[0]
    for i in prange(count * batch):
        s, b = i // batch, i % batch
        k = rows[s]
        j = int64(limbs[k])
        acc_rows = np.empty(2, np.int64)
        _inner_to_work(
            work, get_thread_id() * work_size, acc_rows, raised, own, own_limbs, key_b, key_a,
            key_index, digit_of, limbs, b, k, tables, q, q_inv, n,
        )  # fmt: skip
        for h in range(2):
            x = acc_rows[h]
            if h < addend_count and addend_factor[s] != 0:
                p = vsplat(q[j])
                f, fs = vsplat(addend_factor[s]), vsplat(addend_factor_s[s])
                oa = ((b * addend_count + h) * addend_limbs + k) * n
                for c in range(0, n, 16):
                    t = shoup_mod(vload(addend, oa + c), f, fs, p)
                    vstore(work, x + c, arithmetic.add_mod(vload(work, x + c), t, p))
            o = ((2 * b + h) * count + s) * n
            inverse_limb(out, o, work, x, inverse_tables, j, q[j], factor[s], factor_s[s])


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
    tables: Any,
    q: Any,
    n: int,
) -> None:
    """``out[poly, i] = factor[i] N INTT(x[poly, rows[i]] + addend_factor[i] addend)``.

    ``addend_index[poly]`` is the polynomial of the addend, or -1 for none.
    """
    count = rows.shape[0]
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
            inverse_limb(out, o, out, o, tables, j, q[j], factor[s], factor_s[s])
        else:
            inverse_limb(out, o, x, ox, tables, j, q[j], factor[s], factor_s[s])


_OPERANDS = ", dst, do, y, yo, a, as_"
_SETUP = "va, vas = vsplat(uint32(a)), vsplat(uint32(as_))"
_OPERANDS_ADD = _OPERANDS + ", z, zo, c, cs"
_SETUP_ADD = _SETUP + "; vc, vcs = vsplat(uint32(c)), vsplat(uint32(cs))"
_SUB = f"forward_tail_scale_sub({{}}, {TAIL_ARGUMENTS}, y, yo + t, va, vas)"
_ADD = f"forward_tail_scale_sub_add({{}}, {TAIL_ARGUMENTS}, y, yo + t, va, vas, z, zo + t, vc, vcs)"
_PERMUTE = "; permute_block(dst, do, x, xo, b, targets, blocks, patterns)"
_TAILS = {
    "forward_tail_scale_sub": forward_tail_scale_sub,
    "forward_tail_scale_sub_add": forward_tail_scale_sub_add,
    "permute_block": permute_block,
}
_divide = forward_transform(_OPERANDS, _SETUP, _SUB.format("dst, do + t"), _TAILS)
_divide_add = forward_transform(_OPERANDS_ADD, _SETUP_ADD, _ADD.format("dst, do + t"), _TAILS)
_divide_permute = forward_transform(
    _OPERANDS + ", targets, blocks, patterns", _SETUP, _SUB.format("x, xo + t") + _PERMUTE, _TAILS
)
_divide_add_permute = forward_transform(
    _OPERANDS_ADD + ", targets, blocks, patterns",
    _SETUP_ADD,
    _ADD.format("x, xo + t") + _PERMUTE,
    _TAILS,
)


@kernel()
def _divide_limb(
    work: Any,
    wo: int,
    remainder: Any,
    ro: int,
    out: Any,
    o: int,
    x: Any,
    xo: int,
    f: int,
    fs: int,
    addend: Any,
    ao: int,
    g: int,
    gs: int,
    added: bool,
    permuted: bool,
    targets: Any,
    blocks: Any,
    patterns: Any,
    tables: Any,
    j: int,
    p: int,
) -> None:
    """``out = f x - NTT(remainder) (+ g addend)`` for one limb, then an automorphism."""
    if added:
        if permuted:
            _divide_add_permute(
                work, wo, remainder, ro, tables, j, p, out, o, x, xo, f, fs, addend, ao, g, gs,
                targets, blocks, patterns,
            )  # fmt: skip
        else:
            _divide_add(
                work, wo, remainder, ro, tables, j, p, out, o, x, xo, f, fs, addend, ao, g, gs
            )
    elif permuted:
        _divide_permute(
            work, wo, remainder, ro, tables, j, p, out, o, x, xo, f, fs, targets, blocks, patterns
        )
    else:
        _divide(work, wo, remainder, ro, tables, j, p, out, o, x, xo, f, fs)


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
    targets: Any,
    tables: Any,
    q: Any,
    n: int,
) -> None:
    """``out = factor x - NTT(remainder) + addend_factor addend``, then an automorphism.

    `remainder` is overwritten. Limbs that enter have factor 0.
    """
    limbs = rows.shape[0]
    for i in prange(limbs * polys):
        l, b = i // polys, i % polys
        j = int64(primes[l])
        o = (b * limbs + l) * n
        row = max(rows[l], int64(0))
        f, fs, g, gs = factor[l], factor_s[l], addend_factor[l], addend_factor_s[l]
        ox, oz = (b * x_limbs + row) * n, (addend_index[b] * addend_limbs + row) * n
        _divide_limb(
            remainder, o, remainder, o, out, o, x, ox, f, fs, addend, oz, g, gs,
            addend_index[b] >= 0, permuted, targets, blocks, patterns, tables, j, q[j],
        )  # fmt: skip


@kernel(parallel=True)
def switch_targets(
    out: Any,
    work: Any,
    work_size: int,
    raised: Any,
    own: Any,
    own_limbs: int,
    key_b: Any,
    key_a: Any,
    key_index: Any,
    digit_of: Any,
    limbs: Any,
    batch: int,
    remainder: Any,
    rows: Any,
    primes: Any,
    factor: Any,
    factor_s: Any,
    addend: Any,
    addend_count: int,
    addend_limbs: int,
    addend_factor: Any,
    addend_factor_s: Any,
    permuted: bool,
    blocks: Any,
    patterns: Any,
    targets: Any,
    tables: Any,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """`inner_product` and `divide_targets` in one, on the limbs of the result."""
    count = rows.shape[0]
    for i in prange(count * batch):
        l, b = i // batch, i % batch
        j = int64(primes[l])
        k = rows[l]
        offset = get_thread_id() * work_size
        acc_rows = np.empty(2, np.int64)
        acc_rows[0], acc_rows[1] = offset, offset
        if k >= 0:
            _inner_to_work(
                work, offset, acc_rows, raised, own, own_limbs, key_b, key_a, key_index,
                digit_of, limbs, b, k, tables, q, q_inv, n,
            )  # fmt: skip
        f, fs, g, gs = factor[l], factor_s[l], addend_factor[l], addend_factor_s[l]
        for h in range(2):
            o = ((2 * b + h) * count + l) * n
            oa = ((b * addend_count + h) * addend_limbs + max(k, int64(0))) * n
            added = h < addend_count
            # The third place of the work space is free again.
            _divide_limb(
                work, offset + work_size - n, remainder, o, out, o, work, acc_rows[h], f, fs,
                addend, oa if added else int64(0), g, gs, added, permuted, targets, blocks,
                patterns, tables, j, q[j],
            )  # fmt: skip
