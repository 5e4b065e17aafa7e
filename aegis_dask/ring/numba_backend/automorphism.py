"""Automorphisms X -> X^g in the evaluation domain: a permutation of points.

Point i (bit-reversed order) is the evaluation at ``psi^(2 brv(i) + 1)``; the image takes its value
from the point of exponent ``g (2 brv(i) + 1)``. Aligned blocks of 16 come from aligned blocks of
16, and within a block one of at most 16 patterns applies (`automorphism_tables`).
"""

from __future__ import annotations

from typing import Any

from numba import int64, prange, uint32

from aegis_dask.ring.numba_backend.arithmetic import add_mod, montgomery_product
from aegis_dask.ring.numba_backend.jit import inline, kernel
from aegis_dask.ring.numba_backend.simd import vload, vpermute, vsplat, vstore


@inline
def permute_limb(out: Any, o: int, x: Any, ox: int, blocks: Any, patterns: Any, n: int) -> None:
    """Permute one limb; ``blocks[b] = source block * 16 + pattern``."""
    for b in range(n // 16):
        e = int64(blocks[b])
        v = vload(x, ox + (e >> 4) * 16)
        vstore(out, o + b * 16, vpermute(v, vload(patterns, (e & 15) * 16)))


@inline
def permute_block(
    out: Any, o: int, x: Any, ox: int, b: int, targets: Any, blocks: Any, patterns: Any
) -> None:
    """Move block b of 256 points of (x, ox) to its place ``targets[b]`` in (out, o)."""
    first = int64(targets[b]) * 16
    for v in range(first, first + 16):
        e = int64(blocks[v])
        y = vload(x, ox + (e >> 4) * 16)
        vstore(out, o + v * 16, vpermute(y, vload(patterns, (e & 15) * 16)))


@kernel(parallel=True)
def permute(out: Any, x: Any, rows: int, blocks: Any, patterns: Any, n: int) -> None:
    """Apply one automorphism to `rows` limbs."""
    for i in prange(rows):
        o = int64(i) * n
        permute_limb(out, o, x, o, blocks, patterns, n)


@kernel(parallel=True)
def permute_multiply_add(
    acc: Any,
    x: Any,
    y: Any,
    polys: int,
    primes: Any,
    blocks: Any,
    patterns: Any,
    q: Any,
    q_inv: Any,
    n: int,
) -> None:
    """``acc[b, l] += automorphism(x[b, l]) y[l] 2^-32``: a plaintext product of a hoisted rotation.

    `y` is a plaintext in Montgomery form.
    """
    limbs = primes.shape[0]
    for i in prange(limbs * polys):
        l, b = i // polys, i % polys
        j = int64(primes[l])
        p, p2, pi = vsplat(q[j]), vsplat(uint32(2 * q[j])), vsplat(q_inv[j])
        o, oy = (b * limbs + l) * n, l * n
        for k in range(n // 16):
            e, c = int64(blocks[k]), k * 16
            v = vpermute(vload(x, o + (e >> 4) * 16), vload(patterns, (e & 15) * 16))
            t = montgomery_product(v, vload(y, oy + c), pi, p, p2)
            vstore(acc, o + c, add_mod(vload(acc, o + c), t, p))
