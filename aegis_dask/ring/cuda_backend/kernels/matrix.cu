// Sums of many products: plaintext matrices times ciphertexts, and products of encrypted matrices.
// Products are below 2^60; sums are cut below 2 p 2^32 before every eight more (`cut`).
#include "arithmetic.cuh"

#define TILE 64   // outputs, and columns, of a block
#define DEPTH 16  // terms staged at a time
#define EDGE 4    // outputs, and columns, of a thread

// out[o, b, l] = sum_k weights[l, run, o, k] x[k, b, l] 2^-32, or out += with `add`.
//
// x is [k, poly, limb, N] with stride `step` of its first axis; weights have four axes with the
// strides sl, sr, so, sk; all in words. Columns of a run are its points in all polynomials.
// Grid: (column tiles of a run, output tiles, limb * runs).
PHASED(gemm, THREADS)
(u32* out, const u32* x, i64 step, const u32* weights, i64 sl, i64 sr, i64 so, i64 sk, int outs,
 int inner, int runs, int polys, int add, int limbs, const int* primes, const Prime* table) {
    SHARED(u32, left, DEPTH * (TILE + 1));
    SHARED(u32, right, DEPTH * TILE);
    const int l = blockIdx.z / runs, run = blockIdx.z % runs;
    const int length = N / runs, columns = length * polys;
    const int first_column = blockIdx.x * TILE, first_out = blockIdx.y * TILE;
    const u32 tx = threadIdx.x % (TILE / EDGE), ty = threadIdx.x / (TILE / EDGE);
    const Prime c = table[primes[l]];
    const u32* w = weights + l * sl + run * sr;
    u64 sum[EDGE][EDGE];
    UNROLL for (int i = 0; i < EDGE; i++) {
        UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] = 0;
    }
    for (int k0 = 0; k0 < inner; k0 += DEPTH) {
        // Terms beyond the last are zeros.
        for (u32 i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
            const int o = first_out + i / DEPTH, k = k0 + i % DEPTH;
            left[(i % DEPTH) * (TILE + 1) + i / DEPTH] =
                o < outs && k < inner ? w[o * so + k * sk] : 0;
        }
        for (u32 i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
            const int column = first_column + i % TILE, k = k0 + i / TILE;
            const size_t at = ((size_t)(column / length) * limbs + l) * N + run * length +
                              column % length;
            right[i] = column < columns && k < inner ? x[k * step + at] : 0;
        }
        BARRIER;
        UNROLL for (int half = 0; half < DEPTH; half += 8) {
            if (k0 + half >= 16) {
                UNROLL for (int i = 0; i < EDGE; i++) {
                    UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] = cut(sum[i][j], c.q);
                }
            }
            UNROLL for (int k = half; k < half + 8; k++) {
                u32 a[EDGE], b[EDGE];
                UNROLL for (int i = 0; i < EDGE; i++) {
                    a[i] = left[k * (TILE + 1) + ty * EDGE + i];
                    b[i] = right[k * TILE + tx + i * (TILE / EDGE)];
                }
                UNROLL for (int i = 0; i < EDGE; i++) {
                    UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] += product(a[i], b[j]);
                }
            }
        }
        BARRIER;
    }
    UNROLL for (int j = 0; j < EDGE; j++) {
        const int column = first_column + tx + j * (TILE / EDGE);
        if (column >= columns) continue;
        const int poly = column / length;
        UNROLL for (int i = 0; i < EDGE; i++) {
            const int o = first_out + ty * EDGE + i;
            if (o >= outs) continue;
            const size_t at = (((size_t)o * polys + poly) * limbs + l) * N + run * length +
                              column % length;
            const u32 t = reduce(sum[i][j], c.q, c.q_inv);
            out[at] = add ? add_mod(out[at], t, c.q) : t;
        }
    }
}

#define PAIR 2  // rows, and outputs, of a thread of `contract`

// out[r, o] = sum_k x[r, k] y[o, k]: from [r, k, 2] and [o, k, 2] to [r, o, 3], strides in words.
// Grid: (N / THREADS, row pairs * output pairs, limbs).
KERNEL(contract, THREADS)
(u32* out, const u32* x, i64 sx_row, i64 sx, const u32* y, i64 sy_out, i64 sy, int rows, int outs,
 int terms, int limbs, const int* primes, const Prime* table) {
    const int l = blockIdx.z, pairs = (outs + PAIR - 1) / PAIR;
    const int r0 = blockIdx.y / pairs * PAIR, o0 = blockIdx.y % pairs * PAIR;
    const size_t point = (size_t)l * N + blockIdx.x * THREADS + threadIdx.x;
    const size_t step = (size_t)limbs * N;
    const Prime c = table[primes[l]];
    u64 sum[PAIR][PAIR][3];
    UNROLL for (int i = 0; i < PAIR; i++) {
        UNROLL for (int j = 0; j < PAIR; j++) {
            UNROLL for (int h = 0; h < 3; h++) sum[i][j][h] = 0;
        }
    }
    for (int k = 0; k < terms; k++) {
        // Every term adds two products to component 1, so a cut every four.
        if (k >= 8 && k % 4 == 0) {
            UNROLL for (int i = 0; i < PAIR; i++) {
                UNROLL for (int j = 0; j < PAIR; j++) {
                    UNROLL for (int h = 0; h < 3; h++) sum[i][j][h] = cut(sum[i][j][h], c.q);
                }
            }
        }
        u32 a[PAIR][2], b[PAIR][2];
        UNROLL for (int i = 0; i < PAIR; i++) {
            // What lies beyond the last row or output is computed and not stored.
            const size_t ax = min(r0 + i, rows - 1) * sx_row + k * sx + point;
            const size_t by = min(o0 + i, outs - 1) * sy_out + k * sy + point;
            a[i][0] = x[ax], a[i][1] = x[ax + step];
            b[i][0] = y[by], b[i][1] = y[by + step];
        }
        UNROLL for (int i = 0; i < PAIR; i++) {
            UNROLL for (int j = 0; j < PAIR; j++) {
                sum[i][j][0] += product(a[i][0], b[j][0]);
                sum[i][j][1] += product(a[i][0], b[j][1]);
                sum[i][j][1] += product(a[i][1], b[j][0]);
                sum[i][j][2] += product(a[i][1], b[j][1]);
            }
        }
    }
    UNROLL for (int i = 0; i < PAIR; i++) {
        UNROLL for (int j = 0; j < PAIR; j++) {
            if (r0 + i >= rows || o0 + j >= outs) continue;
            UNROLL for (int h = 0; h < 3; h++) {
                const u32 t = reduce_lazy(sum[i][j][h], c.q, c.q_inv);
                out[((size_t)(r0 + i) * outs + o0 + j) * 3 * step + h * step + point] =
                    reduce(product(t, c.r2), c.q, c.q_inv);
            }
        }
    }
}

// Weights, first step: residues [limb, run, column] of signed integers [run, column]; `last` brings
// them into Montgomery form. Grid: (blocks of THREADS elements, limbs).
KERNEL(encode_residues, THREADS)
(u32* out, const i64* x, i64 count, int last, const int* primes, const Prime* table) {
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const Prime c = table[primes[blockIdx.y]];
    const Factor form = {c.w32, c.w32_s};
    const u32 t = signed_residue(x[i], c);
    out[blockIdx.y * count + i] = last ? shoup_mod(t, form, c.q) : t;
}

// Weights, one stage of the transform over runs, in place: `groups` groups of twiddles, canonical in
// and out; `last` brings the result into Montgomery form. Grid: (blocks of butterflies, limbs).
KERNEL(encode_stage, THREADS)
(u32* x, i64 columns, int runs, int groups, int last, const int* primes, const Factor* scalar,
 const Prime* table) {
    const i64 i = (i64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= columns * (runs / 2)) return;
    const Prime c = table[primes[blockIdx.y]];
    const int half = runs / 2 / groups;
    const i64 butterfly = i / columns, column = i % columns;
    const int group = butterfly / half, inside = butterfly % half;
    u32* a = x + (i64)blockIdx.y * runs * columns + (i64)(2 * half * group + inside) * columns + column;
    u32* b = a + (i64)half * columns;
    const Factor* w = scalar + (size_t)primes[blockIdx.y] * (N / 16);
    const u32 t = shoup_mod(*b, w[groups + group], c.q);
    u32 u = add_mod(*a, t, c.q), v = sub_mod(*a, t, c.q);
    if (last) {
        const Factor form = {c.w32, c.w32_s};
        u = shoup_mod(u, form, c.q), v = shoup_mod(v, form, c.q);
    }
    *a = u, *b = v;
}
