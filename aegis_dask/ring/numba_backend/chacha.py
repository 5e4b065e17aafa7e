"""Uniform residues from a seed: ChaCha20 (RFC 8439), addressed by (domain, index, prime).

The nonce is (domain, index, prime) as three little-endian words, so any limb of any key digit is
rebuilt alone. Coefficient c belongs to block ``16 (c // 128) + c % 16`` of the key stream and takes
words 2k and 2k + 1 of it, ``k = c // 16 mod 8``, as a 64-bit number u (low word first), reduced
modulo the prime. If u is not below the largest multiple of the prime it is rejected, and the same
words of the block ``r N/8`` further on are tried for r = 1, 2, ...: exactly uniform, and a retry
happens once in 2^34 coefficients.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, prange, uint32, uint64

from aegis_dask.ring.numba_backend.arithmetic import canonical2
from aegis_dask.ring.numba_backend.jit import inline, kernel
from aegis_dask.ring.numba_backend.simd import (
    vadd,
    vany_equal,
    vload,
    vmin,
    vrotate_left,
    vshoup,
    vsplat,
    vstore,
    vsub,
    vxor,
)


@inline
def _quarter_vector(a: Any, b: Any, c: Any, d: Any) -> Any:
    a = vadd(a, b)
    d = vrotate_left(vxor(d, a), 16)
    c = vadd(c, d)
    b = vrotate_left(vxor(b, c), 12)
    a = vadd(a, b)
    d = vrotate_left(vxor(d, a), 8)
    c = vadd(c, d)
    b = vrotate_left(vxor(b, c), 7)
    return a, b, c, d


@kernel()
def _blocks16(out: Any, state: Any, lanes: Any) -> None:
    """16 consecutive blocks: word k of block b goes to ``out[16 k + b]``; state is 16 words."""
    x0, x1, x2, x3 = vsplat(state[0]), vsplat(state[1]), vsplat(state[2]), vsplat(state[3])
    x4, x5, x6, x7 = vsplat(state[4]), vsplat(state[5]), vsplat(state[6]), vsplat(state[7])
    x8, x9, x10, x11 = vsplat(state[8]), vsplat(state[9]), vsplat(state[10]), vsplat(state[11])
    x12 = vadd(vsplat(state[12]), vload(lanes, 0))
    counter = x12
    x13, x14, x15 = vsplat(state[13]), vsplat(state[14]), vsplat(state[15])
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_vector(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_vector(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_vector(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_vector(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_vector(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_vector(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_vector(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_vector(x3, x4, x9, x14)
    vstore(out, 0, vadd(x0, vsplat(state[0])))
    vstore(out, 16, vadd(x1, vsplat(state[1])))
    vstore(out, 32, vadd(x2, vsplat(state[2])))
    vstore(out, 48, vadd(x3, vsplat(state[3])))
    vstore(out, 64, vadd(x4, vsplat(state[4])))
    vstore(out, 80, vadd(x5, vsplat(state[5])))
    vstore(out, 96, vadd(x6, vsplat(state[6])))
    vstore(out, 112, vadd(x7, vsplat(state[7])))
    vstore(out, 128, vadd(x8, vsplat(state[8])))
    vstore(out, 144, vadd(x9, vsplat(state[9])))
    vstore(out, 160, vadd(x10, vsplat(state[10])))
    vstore(out, 176, vadd(x11, vsplat(state[11])))
    vstore(out, 192, vadd(x12, counter))
    vstore(out, 208, vadd(x13, vsplat(state[13])))
    vstore(out, 224, vadd(x14, vsplat(state[14])))
    vstore(out, 240, vadd(x15, vsplat(state[15])))


@kernel()
def _retry(state: Any, lanes: Any, words: Any, lane: int, k: int, n: int, q: int) -> int:
    """Residue of one coefficient whose word pair may have to be rejected."""
    first = state[12]
    modulus = uint64(q)
    excess = (uint64(0xFFFFFFFFFFFFFFFF) % modulus + uint64(1)) % modulus
    limit = uint64(0) - excess  # largest multiple of q below 2^64 (0 stands for 2^64)
    u = uint64(words[32 * k + lane]) | (uint64(words[32 * k + 16 + lane]) << uint64(32))
    scratch = np.empty(256, np.uint32)
    while limit != uint64(0) and u >= limit:
        state[12] = uint32(state[12] + n // 8)
        _blocks16(scratch, state, lanes)
        u = uint64(scratch[32 * k + lane]) | (uint64(scratch[32 * k + 16 + lane]) << uint64(32))
    state[12] = first
    return uint32(u % modulus)


@kernel(parallel=True)
def uniform(
    out: Any,
    key: Any,
    domain: int,
    indices: Any,
    q: Any,
    one_s: Any,
    w32: Any,
    w32_s: Any,
    n: int,
) -> None:
    """``out[i, l]`` uniform modulo ``q[l]``, for the key stream of (domain, indices[i], q[l])."""
    limbs = q.shape[0]
    lanes = np.arange(16).astype(np.uint32)
    for row in prange(indices.shape[0] * limbs):
        i, l = row // limbs, row % limbs
        p, p2 = vsplat(q[l]), vsplat(uint32(2 * q[l]))
        one, os, w, ws = vsplat(uint32(1)), vsplat(one_s[l]), vsplat(w32[l]), vsplat(w32_s[l])
        ones = vsplat(uint32(0xFFFFFFFF))
        state = np.empty(16, np.uint32)
        state[0], state[1], state[2], state[3] = 0x61707865, 0x3320646E, 0x79622D32, 0x6B206574
        for k in range(8):
            state[4 + k] = key[k]
        state[13], state[14], state[15] = uint32(domain), uint32(indices[i]), q[l]
        words = np.empty(256, np.uint32)
        for g in range(n // 128):
            state[12] = uint32(16 * g)
            _blocks16(words, state, lanes)
            for k in range(8):
                low, high = vload(words, 32 * k), vload(words, 32 * k + 16)
                t = vadd(vshoup(low, one, os, p), vshoup(high, w, ws, p))
                t = canonical2(vmin(t, vsub(t, p2)), p)
                o = int64(row) * n + 128 * g + 16 * k
                vstore(out, o, t)
                if vany_equal(high, ones):
                    for lane in range(16):
                        out[o + lane] = _retry(state, lanes, words, lane, k, n, q[l])


@kernel()
def key_stream(out: Any, state: Any) -> None:
    """Write the key stream of 16 blocks in RFC 8439 order, for the known-answer tests."""
    words = np.empty(256, np.uint32)
    _blocks16(words, state, np.arange(16).astype(np.uint32))
    for b in range(16):
        for k in range(16):
            out[16 * b + k] = words[16 * k + b]
