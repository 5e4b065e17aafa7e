"""Modular arithmetic on vectors of residues. Ranges are stated per function; p is below 2^30."""

from __future__ import annotations

from typing import Any

from numba import uint32, uint64

from aegis_dask.ring.numba_backend.jit import inline
from aegis_dask.ring.numba_backend.simd import (
    qhigh_words,
    qmin,
    qsplat,
    qsub,
    vadd,
    vmin,
    vmontgomery,
    vmul_even,
    vmul_odd,
    vshoup,
    vsub,
)


@inline
def canonical2(x: Any, p: Any) -> Any:
    """[0, 2p) -> [0, p)."""
    return vmin(x, vsub(x, p))


@inline
def canonical4(x: Any, p: Any, p2: Any) -> Any:
    """[0, 4p) -> [0, p)."""
    x = vmin(x, vsub(x, p2))
    return vmin(x, vsub(x, p))


@inline
def add_mod(x: Any, y: Any, p: Any) -> Any:
    """[0, p) + [0, p) -> [0, p)."""
    return canonical2(vadd(x, y), p)


@inline
def sub_mod(x: Any, y: Any, p: Any) -> Any:
    """[0, p) - [0, p) -> [0, p): the smaller of x - y and x - y + p, both mod 2^32."""
    d = vsub(x, y)
    return vmin(d, vadd(d, p))


@inline
def shoup_mod(x: Any, w: Any, ws: Any, p: Any) -> Any:
    """Any 32-bit x times a constant w -> [0, p)."""
    return canonical2(vshoup(x, w, ws, p), p)


@inline
def reduce4_lazy(even: Any, odd: Any, p_inv: Any, p: Any, p2: Any) -> Any:
    """64-bit t with t < 4 p 2^32 -> t 2^-32 mod p in (0, 3p)."""
    h = qhigh_words(even, odd)
    return vsub(vadd(vmin(h, vsub(h, p2)), p), vmontgomery(even, odd, p_inv, p))


@inline
def reduce4(even: Any, odd: Any, p_inv: Any, p: Any, p2: Any) -> Any:
    """64-bit t with t < 4 p 2^32 -> t 2^-32 mod p in [0, p)."""
    return canonical4(reduce4_lazy(even, odd, p_inv, p, p2), p, p2)


@inline
def montgomery_product(x: Any, y: Any, p_inv: Any, p: Any, p2: Any) -> Any:
    """X y 2^-32 mod p in [0, p) for x y < 4 p 2^32 (so for x any 32-bit value, y < p)."""
    return reduce4(vmul_even(x, y), vmul_odd(x, y), p_inv, p, p2)


@inline
def montgomery_product_lazy(x: Any, y: Any, p_inv: Any, p: Any, p2: Any) -> Any:
    """X y 2^-32 mod p in (0, 3p), a factor of a product that is reduced next."""
    return reduce4_lazy(vmul_even(x, y), vmul_odd(x, y), p_inv, p, p2)


@inline
def cut(t: Any, p: int) -> Any:
    """64-bit t -> t or t - 2p 2^32, below 2^63 whenever p > 2^29 (to add eight more products)."""
    return qmin(t, qsub(t, qsplat(uint64(uint32(p)) << uint64(33))))
