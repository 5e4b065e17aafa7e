"""Kernels that touch each residue once: bound by memory, so every fusion saves a pass.

Arrays are flat views of ``[poly, limb, N]``; row ``i = limb * polys + poly`` of the parallel loop
keeps the rows of one prime together. An operand that is shared by several polynomials (a plaintext)
is addressed through an index array, poly -> operand poly.
"""

from __future__ import annotations

from typing import Any

from numba import int64, prange, uint32

from aegis_dask.ring.numba_backend.arithmetic import (
    add_mod,
    canonical2,
    montgomery_product,
    montgomery_product_lazy,
    reduce4,
    shoup_mod,
    sub_mod,
)
from aegis_dask.ring.numba_backend.jit import inline, kernel
from aegis_dask.ring.numba_backend.simd import (
    qadd,
    qhigh_words_seq,
    qload,
    qlow_words_seq,
    vadd,
    vand,
    vload,
    vmin,
    vmul_even,
    vmul_odd,
    vshoup,
    vsign_mask,
    vsplat,
    vstore,
    vsub,
)


@kernel(parallel=True)
def add(out: Any, x: Any, y: Any, y_index: Any, q: Any, n: int) -> None:
    """``out = x + y``."""
    polys, limbs = y_index.shape[0], q.shape[0]
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p = vsplat(q[l])
        o, oy = (b * limbs + l) * n, (y_index[b] * limbs + l) * n
        for c in range(0, n, 16):
            vstore(out, o + c, add_mod(vload(x, o + c), vload(y, oy + c), p))


@kernel(parallel=True)
def sub(out: Any, x: Any, y: Any, y_index: Any, q: Any, n: int) -> None:
    """``out = x - y``."""
    polys, limbs = y_index.shape[0], q.shape[0]
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p = vsplat(q[l])
        o, oy = (b * limbs + l) * n, (y_index[b] * limbs + l) * n
        for c in range(0, n, 16):
            vstore(out, o + c, sub_mod(vload(x, o + c), vload(y, oy + c), p))


@kernel(parallel=True)
def negate(out: Any, x: Any, polys: int, q: Any, n: int) -> None:
    """``out = -x``."""
    limbs = q.shape[0]
    zero = vsplat(uint32(0))
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p = vsplat(q[l])
        o = (b * limbs + l) * n
        for c in range(0, n, 16):
            vstore(out, o + c, sub_mod(zero, vload(x, o + c), p))


@kernel(parallel=True)
def multiply(
    out: Any, x: Any, y: Any, y_index: Any, q: Any, q_inv: Any, r2: Any, accumulate: bool, n: int
) -> None:
    """``out = x y``, or ``out += x y``; `r2` is ``2^64 mod q`` (two Montgomery reductions)."""
    polys, limbs = y_index.shape[0], q.shape[0]
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p, p2, pi, rr = vsplat(q[l]), vsplat(uint32(2 * q[l])), vsplat(q_inv[l]), vsplat(r2[l])
        o, oy = (b * limbs + l) * n, (y_index[b] * limbs + l) * n
        if accumulate:
            for c in range(0, n, 16):
                t = montgomery_product_lazy(vload(x, o + c), vload(y, oy + c), pi, p, p2)
                t = montgomery_product(t, rr, pi, p, p2)
                vstore(out, o + c, add_mod(vload(out, o + c), t, p))
        else:
            for c in range(0, n, 16):
                t = montgomery_product_lazy(vload(x, o + c), vload(y, oy + c), pi, p, p2)
                vstore(out, o + c, montgomery_product(t, rr, pi, p, p2))


@kernel(parallel=True)
def scale_runs(
    out: Any, x: Any, w: Any, ws: Any, polys: int, q: Any, accumulate: bool, n: int
) -> None:
    """Multiply by ``w[limb, row, run]``, constant over n / runs points; or add that to `out`.

    One run is a scalar, two are a complex scalar, 2B a plaintext of period B slots. Rows share the
    polynomials evenly.
    """
    limbs, rows, runs = w.shape
    share = polys // rows
    length = n // runs
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p = vsplat(q[l])
        for r in range(runs):
            v, vs = vsplat(w[l, b // share, r]), vsplat(ws[l, b // share, r])
            o = (b * limbs + l) * n + r * length
            if accumulate:
                for c in range(o, o + length, 16):
                    t = vadd(vload(out, c), vshoup(vload(x, c), v, vs, p))
                    t = vmin(t, vsub(t, vadd(p, p)))
                    vstore(out, c, canonical2(t, p))
            else:
                for c in range(o, o + length, 16):
                    vstore(out, c, shoup_mod(vload(x, c), v, vs, p))


@kernel(parallel=True)
def add_runs(out: Any, x: Any, w: Any, polys: int, q: Any, n: int) -> None:
    """``out = x + w[limb, row, run]``, w as in `scale_runs`."""
    limbs, rows, runs = w.shape
    share = polys // rows
    length = n // runs
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p = vsplat(q[l])
        for r in range(runs):
            v = vsplat(w[l, b // share, r])
            o = (b * limbs + l) * n + r * length
            for c in range(o, o + length, 16):
                vstore(out, c, add_mod(vload(x, c), v, p))


@kernel(parallel=True)
def tensor(out: Any, x: Any, y: Any, y_index: Any, q: Any, q_inv: Any, r2: Any, n: int) -> None:
    """``[b, 2] x [b, 2] -> [b, 3]``: (x0 y0, x0 y1 + x1 y0, x1 y1)."""
    batch, limbs = y_index.shape[0], q.shape[0]
    step = limbs * n
    for i in prange(batch * limbs):
        l, b = i // batch, i % batch
        p, p2, pi, rr = vsplat(q[l]), vsplat(uint32(2 * q[l])), vsplat(q_inv[l]), vsplat(r2[l])
        ox, oy, oz = (
            (2 * b * limbs + l) * n,
            (2 * y_index[b] * limbs + l) * n,
            (3 * b * limbs + l) * n,
        )
        for c in range(0, n, 16):
            # Below 3p: a sum of two products with y stays below 6 p^2 < 4 p 2^32.
            x0 = montgomery_product_lazy(vload(x, ox + c), rr, pi, p, p2)
            x1 = montgomery_product_lazy(vload(x, ox + step + c), rr, pi, p, p2)
            y0, y1 = vload(y, oy + c), vload(y, oy + step + c)
            vstore(out, oz + c, montgomery_product(x0, y0, pi, p, p2))
            even = qadd(vmul_even(x0, y1), vmul_even(x1, y0))
            odd = qadd(vmul_odd(x0, y1), vmul_odd(x1, y0))
            vstore(out, oz + step + c, reduce4(even, odd, pi, p, p2))
            vstore(out, oz + 2 * step + c, montgomery_product(x1, y1, pi, p, p2))


@inline
def signed_residue(
    u: Any, v: Any, one: Any, one_s: Any, w32: Any, w32_s: Any, w64: Any, p: Any, p2: Any
) -> Any:
    """Sixteen signed 64-bit integers (u, v) -> [0, p).

    ``x mod 2^64 = low + 2^32 high``, minus 2^64 where x is negative: `w32`, `w64` are ``2^32`` and
    ``2^64 mod p``, `one_s` the Shoup companion of 1.
    """
    low, high = qlow_words_seq(u, v), qhigh_words_seq(u, v)
    t = vadd(vshoup(low, one, one_s, p), vshoup(high, w32, w32_s, p))
    t = canonical2(vmin(t, vsub(t, p2)), p)
    return sub_mod(t, vand(vsign_mask(high), w64), p)


@kernel(parallel=True)
def from_signed(
    out: Any, x: Any, polys: int, q: Any, one_s: Any, w32: Any, w32_s: Any, w64: Any, n: int
) -> None:
    """Residues of signed 64-bit integers; constants as for `signed_residue`."""
    limbs = q.shape[0]
    for i in prange(polys * limbs):
        l, b = i // polys, i % polys
        p, p2 = vsplat(q[l]), vsplat(uint32(2 * q[l]))
        one, os = vsplat(uint32(1)), vsplat(one_s[l])
        w, ws, minus = vsplat(w32[l]), vsplat(w32_s[l]), vsplat(w64[l])
        o, ox = (b * limbs + l) * n, b * n
        for c in range(0, n, 16):
            u, v = qload(x, ox + c), qload(x, ox + c + 8)
            vstore(out, o + c, signed_residue(u, v, one, os, w, ws, minus, p, p2))


@kernel(parallel=True)
def copy(out: Any, x: Any, rows: int, n: int) -> None:
    """Copy rows in parallel (NumPy copies with one thread)."""
    for i in prange(rows):
        o = int64(i) * n
        for c in range(o, o + n, 16):
            vstore(out, c, vload(x, c))
