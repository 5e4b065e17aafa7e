// Uniform residues from a seed: ChaCha20 (RFC 8439) addressed by (domain, index, prime).
//
// Coefficient c belongs to block `16 (c / 128) + c % 16` of the key stream and takes words 2k and
// 2k + 1 of it, `k = c / 16 mod 8`, as a 64-bit number u. If u is not below the largest multiple of
// the prime, the same words of the block `r N/8` further on are tried for r = 1, 2, ...
#include "arithmetic.cuh"

#define CHACHA_THREADS 128

struct Seed {
    u32 words[8];
};

DEVICE u32 rotate(u32 x, int by) { return x << by | x >> (32 - by); }

DEVICE void quarter(u32& a, u32& b, u32& c, u32& d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 12);
    a += b, d = rotate(d ^ a, 8);
    c += d, b = rotate(b ^ c, 7);
}

DEVICE void chacha_block(u32* x, const Seed& key, u32 counter, u32 n0, u32 n1, u32 n2) {
    u32 s[16] = {0x61707865, 0x3320646E, 0x79622D32, 0x6B206574};
    UNROLL for (int i = 0; i < 8; i++) s[4 + i] = key.words[i];
    s[12] = counter, s[13] = n0, s[14] = n1, s[15] = n2;
    UNROLL for (int i = 0; i < 16; i++) x[i] = s[i];
    for (int round = 0; round < 10; round++) {
        UNROLL for (int i = 0; i < 4; i++) quarter(x[i], x[4 + i], x[8 + i], x[12 + i]);
        UNROLL for (int i = 0; i < 4; i++)
            quarter(x[i], x[4 + (i + 1) % 4], x[8 + (i + 2) % 4], x[12 + (i + 3) % 4]);
    }
    UNROLL for (int i = 0; i < 16; i++) x[i] += s[i];
}

// out[i, l] uniform modulo the prime of limb l, of the key stream (domain, indices[i], prime).
// Grid: one block of threads for CHACHA_THREADS key stream blocks of a row; a thread makes the eight
// coefficients of one.
KERNEL(uniform, CHACHA_THREADS)
(u32* out, Seed key, u32 domain, const int* indices, int limbs, const int* primes,
 const Prime* table) {
    const u32 per_row = N / 8 / CHACHA_THREADS;
    const u32 row = blockIdx.x / per_row, block = blockIdx.x % per_row * CHACHA_THREADS + threadIdx.x;
    const Prime c = table[primes[row % limbs]];
    const u32 index = indices[row / limbs];
    const u64 excess = (~0ull % c.q + 1) % c.q;
    const u64 limit = 0 - excess;  // largest multiple of q below 2^64; 0 stands for 2^64
    u32 x[16];
    chacha_block(x, key, block, domain, index, c.q);
    u32* place = out + (size_t)row * N + block / 16 * 128 + block % 16;
    UNROLL for (int k = 0; k < 8; k++) {
        u64 u = x[2 * k] | (u64)x[2 * k + 1] << 32;
        u32 counter = block;
        while (limit && u >= limit) {  // once in 2^34 coefficients
            u32 again[16];
            counter += N / 8;
            chacha_block(again, key, counter, domain, index, c.q);
            u = again[2 * k] | (u64)again[2 * k + 1] << 32;
        }
        const Factor one = {1, c.one_s}, w32 = {c.w32, c.w32_s};
        place[16 * k] =
            canonical4(shoup((u32)u, one, c.q) + shoup((u32)(u >> 32), w32, c.q), c.q);
    }
}
