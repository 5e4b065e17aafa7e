// Modular arithmetic. p is a prime below 2^30, p2 is 2p; ranges are stated per function.
#pragma once
#include "common.cuh"

// [0, 2m) -> [0, m), 2m at most 2^32
DEVICE u32 below(u32 x, u32 m) { return min(x, x - m); }

// [0, 2p) -> [0, p)
DEVICE u32 canonical2(u32 x, u32 p) { return below(x, p); }

// [0, 4p) -> [0, 2p)
DEVICE u32 halve4(u32 x, u32 p) { return below(x, 2 * p); }

// [0, 4p) -> [0, p)
DEVICE u32 canonical4(u32 x, u32 p) { return canonical2(halve4(x, p), p); }

// [0, p) + [0, p) -> [0, p)
DEVICE u32 add_mod(u32 x, u32 y, u32 p) { return canonical2(x + y, p); }

// [0, p) - [0, p) -> [0, p): the smaller of x - y and x - y + p modulo 2^32
DEVICE u32 sub_mod(u32 x, u32 y, u32 p) { return min(x - y, x - y + p); }

// Any 32-bit x times a constant f.w < p -> [0, 2p)   (Shoup; Harvey, arXiv:1205.2926)
DEVICE u32 shoup(u32 x, Factor f, u32 p) { return x * f.w - __umulhi(x, f.ws) * p; }

DEVICE u32 shoup_mod(u32 x, Factor f, u32 p) { return canonical2(shoup(x, f, p), p); }

DEVICE u64 product(u32 x, u32 y) { return (u64)x * y; }

// 64-bit t < 4 p 2^32 -> t 2^-32 mod p in (0, 3p)   (Montgomery)
DEVICE u32 reduce_lazy(u64 t, u32 p, u32 q_inv) {
    u32 m = (u32)t * q_inv;
    return halve4((u32)(t >> 32), p) + p - __umulhi(m, p);
}

// 64-bit t < 4 p 2^32 -> t 2^-32 mod p in [0, p)
DEVICE u32 reduce(u64 t, u32 p, u32 q_inv) { return canonical4(reduce_lazy(t, p, q_inv), p); }

// 64-bit t < 4 p 2^32 -> t or t - 2p 2^32, below 2p 2^32: eight more products can be added, p < 2^30.
// Only the high word changes.
DEVICE u64 cut(u64 t, u32 p2) { return (u64)below((u32)(t >> 32), p2) << 32 | (u32)t; }

// Signed 64-bit x -> [0, p)
DEVICE u32 signed_residue(i64 x, const Prime& c) {
    u32 low = (u32)x, high = (u32)((u64)x >> 32);
    Factor one = {1, c.one_s}, w32 = {c.w32, c.w32_s};
    u32 t = canonical4(shoup(low, one, c.q) + shoup(high, w32, c.q), c.q);
    return x < 0 ? sub_mod(t, c.r2, c.q) : t;
}

// Point i of an image under X -> X^g, in bit-reversed order, comes from this point.
DEVICE u32 source_of(u32 i, u32 g) {
    u32 exponent = ((2 * (__brev(i) >> (32 - LOG_N)) + 1) * g) & (2 * N - 1);
    return __brev(exponent >> 1) >> (32 - LOG_N);
}

// Store four points, x of an image under X -> X^g with g^-1 = inverse. Points 4k .. 4k + 3 go to
// four such points: in bit-reversed order their exponents differ by multiples of N/2, so the highest
// two bits of where they go are those of the first, plus 0, 2, inverse and inverse + 2 modulo 4.
DEVICE void store_turned(u32* row, u32 point, Quad x, u32 inverse) {
    const u32 first = source_of(point, inverse), by = (first & 1) * 2 + (first >> 1 & 1);
    const bool odd = by & 1, half = by & 2, crossed = inverse & 2;
    // In the order of those bits, from the first on; then from zero on.
    const u32 a[4] = {x.at[0], crossed ? x.at[3] : x.at[2], x.at[1], crossed ? x.at[2] : x.at[3]};
    u32 b[4];
    UNROLL for (int i = 0; i < 4; i++) b[i] = odd ? a[(i + 3) % 4] : a[i];
    UNROLL for (int i = 0; i < 4; i++) x.at[i] = half ? b[(i + 2) % 4] : b[i];
    store(row + (first & ~3u), Quad{{x.at[0], x.at[2], x.at[1], x.at[3]}});
}
