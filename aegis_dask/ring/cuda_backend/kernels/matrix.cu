// Sums of many products: plaintext matrices times ciphertexts, and products of encrypted matrices.
// Products are below 2^60; sums are cut below 2 p 2^32 before every eight more (`cut`).
#include "arithmetic.cuh"

#define TILE 64   // outputs, and columns, of a block
#define DEPTH 16  // terms staged at a time
#define EDGE 4    // outputs, and columns, of a thread: a Quad of each
#define LEFT (TILE + VECTOR)

// What this thread stages of the terms from k0 on, into registers. Terms beyond the last are zeros.
#define FETCH(k0)                                                                              \
    UNROLL for (int j = 0; j < EDGE; j++) {                                                    \
        const int o = first_out + threadIdx.x / DEPTH + j * (THREADS / DEPTH);                 \
        const int k = (k0) + threadIdx.x / TILE + j * (THREADS / TILE);                        \
        a[j] = o < outs && (k0) + own_k < inner ? w[o * so + (k0) * sk] : 0;                   \
        b[j] = column < columns && k < inner ? from[k * step] : 0;                             \
    }

// out[o, b, l] = sum_k weights[l, run, o, k] x[k, b, l] 2^-32, or out += with `add`.
//
// x is [k, poly, limb, N] with stride `step` of its first axis; weights have four axes with the
// strides sl, sr, so, sk; all in words. Columns of a run are its points in all polynomials.
// Grid: (column tiles of a run * output tiles * runs, 1, limbs): only its first axis may be long.
PHASED(gemm, THREADS)
(u32* out, const u32* x, i64 step, const u32* weights, i64 sl, i64 sr, i64 so, i64 sk, int outs,
 int inner, int runs, int polys, int add, int limbs, const int* primes, const Prime* table) {
    SHARED(uint4, lefts, DEPTH * LEFT / VECTOR);  // aligned for `load`
    SHARED(uint4, rights, DEPTH * TILE / VECTOR);
    u32 *left = (u32*)lefts, *right = (u32*)rights;
    const int length = N / runs, columns = length * polys, l = blockIdx.z;
    const int across = (columns + TILE - 1) / TILE, tiles = across * ((outs + TILE - 1) / TILE);
    const int run = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const int first_column = tile % across * TILE, first_out = tile / across * TILE;
    const u32 tx = threadIdx.x % (TILE / EDGE), ty = threadIdx.x / (TILE / EDGE);
    const int column = first_column + threadIdx.x % TILE, own_k = threadIdx.x % DEPTH;
    const u32* from = x + ((size_t)(column / length) * limbs + l) * N + run * length + column % length;
    const u32* w = weights + l * sl + run * sr + own_k * sk;
    const Prime c = table[primes[l]];
    u64 sum[EDGE][EDGE];
    UNROLL for (int i = 0; i < EDGE; i++) {
        UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] = 0;
    }
    u32 a[EDGE], b[EDGE];
    FETCH(0)
    for (int k0 = 0; k0 < inner; k0 += DEPTH) {
        UNROLL for (int j = 0; j < EDGE; j++) {
            left[own_k * LEFT + threadIdx.x / DEPTH + j * (THREADS / DEPTH)] = a[j];
            right[threadIdx.x + j * THREADS] = b[j];
        }
        BARRIER;
        if (k0 + DEPTH < inner) {
            FETCH(k0 + DEPTH)
        }
        UNROLL for (int half = 0; half < DEPTH; half += 8) {
            if (k0 + half >= 16) {
                UNROLL for (int i = 0; i < EDGE; i++) {
                    UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] = cut(sum[i][j], c.q2);
                }
            }
            UNROLL for (int k = half; k < half + 8; k++) {
                const Quad u = load(left + k * LEFT + ty * EDGE), v = load(right + k * TILE + tx * EDGE);
                UNROLL for (int i = 0; i < EDGE; i++) {
                    UNROLL for (int j = 0; j < EDGE; j++) sum[i][j] += product(u.at[i], v.at[j]);
                }
            }
        }
        BARRIER;
    }
    const int mine = first_column + tx * EDGE;  // runs are longer than EDGE: all or none
    if (mine >= columns) EXIT;
    u32* to = out + ((size_t)(mine / length) * limbs + l) * N + run * length + mine % length;
    UNROLL for (int i = 0; i < EDGE; i++) {
        const int o = first_out + ty * EDGE + i;
        if (o >= outs) break;
        u32* at = to + (size_t)o * polys * limbs * N;
        Quad r;
        UNROLL for (int j = 0; j < EDGE; j++) r.at[j] = reduce(sum[i][j], c.q, c.q_inv);
        if (add) {
            const Quad before = load(at);
            UNROLL for (int j = 0; j < EDGE; j++) r.at[j] = add_mod(before.at[j], r.at[j], c.q);
        }
        store(at, r);
    }
}

#define THIN 8  // outputs of a thread of `gemm_thin`

// The same for few outputs, without shared memory: a thread reads two columns of every term once.
// Grid: (blocks of points * polynomials, groups of THIN outputs, limbs).
KERNEL(gemm_thin, THREADS)
(u32* out, const u32* x, i64 step, const u32* weights, i64 sl, i64 sr, i64 so, i64 sk, int outs,
 int inner, int runs, int polys, int add, int limbs, const int* primes, const Prime* table) {
    const u32 pieces = N / (2 * THREADS), poly = blockIdx.x / pieces;
    const u32 point = (blockIdx.x % pieces * THREADS + threadIdx.x) * 2;
    const int l = blockIdx.z, first = blockIdx.y * THIN;
    const Prime c = table[primes[l]];
    const u32* from = x + ((size_t)poly * limbs + l) * N + point;
    const u32* w = weights + l * sl + (i64)(point * runs >> LOG_N) * sr + first * so;
    u64 sum[THIN][2];
    UNROLL for (int o = 0; o < THIN; o++) sum[o][0] = sum[o][1] = 0;
    for (int k = 0; k < inner; k++) {
        if (k >= 16 && k % 8 == 0) {
            UNROLL for (int o = 0; o < THIN; o++) {
                sum[o][0] = cut(sum[o][0], c.q2);
                sum[o][1] = cut(sum[o][1], c.q2);
            }
        }
        const Two v = load2(from);
        UNROLL for (int o = 0; o < THIN; o++) {
            if (first + o >= outs) break;
            const u32 f = w[o * so];
            sum[o][0] += product(f, v.at[0]);
            sum[o][1] += product(f, v.at[1]);
        }
        from += step, w += sk;
    }
    UNROLL for (int o = 0; o < THIN; o++) {
        if (first + o >= outs) break;
        u32* at = out + (((size_t)(first + o) * polys + poly) * limbs + l) * N + point;
        Two r = {reduce(sum[o][0], c.q, c.q_inv), reduce(sum[o][1], c.q, c.q_inv)};
        if (add) {
            const Two before = load2(at);
            UNROLL for (int e = 0; e < 2; e++) r.at[e] = add_mod(before.at[e], r.at[e], c.q);
        }
        store(at, r);
    }
}

#define PAIR 2  // rows, and outputs, and points of a thread of `contract`

// out[r, o] = sum_k x[r, k] y[o, k]: from [r, k, 2] and [o, k, 2] to [r, o, 3], strides in words.
// Grid: (row pairs * output pairs, N / THREADS / PAIR, limbs): blocks of the same points follow each
// other, and find what they share in the cache.
KERNEL(contract, THREADS)
(u32* out, const u32* x, i64 sx_row, i64 sx, const u32* y, i64 sy_out, i64 sy, int rows, int outs,
 int terms, int limbs, const int* primes, const Prime* table) {
    const int l = blockIdx.z, pairs = (outs + PAIR - 1) / PAIR;
    const int r0 = blockIdx.x / pairs * PAIR, o0 = blockIdx.x % pairs * PAIR;
    const size_t point = (size_t)l * N + (blockIdx.y * THREADS + threadIdx.x) * PAIR;
    const size_t step = (size_t)limbs * N;
    const Prime c = table[primes[l]];
    // What lies beyond the last row or output is computed and not stored.
    const u32* from_x[PAIR] = {x + r0 * sx_row + point, x + min(r0 + 1, rows - 1) * sx_row + point};
    const u32* from_y[PAIR] = {y + o0 * sy_out + point, y + min(o0 + 1, outs - 1) * sy_out + point};
    u64 sum[PAIR][PAIR][3][PAIR];
    UNROLL for (int i = 0; i < 2 * 2 * 3 * 2; i++) (&sum[0][0][0][0])[i] = 0;
    for (int k = 0; k < terms; k++) {
        // Every term adds two products to component 1, so a cut every four.
        if (k >= 8 && k % 4 == 0) {
            UNROLL for (int i = 0; i < 2 * 2 * 3 * 2; i++)
                (&sum[0][0][0][0])[i] = cut((&sum[0][0][0][0])[i], c.q2);
        }
        Two a[PAIR][2], b[PAIR][2];
        UNROLL for (int i = 0; i < PAIR; i++) {
            a[i][0] = load2(from_x[i]), a[i][1] = load2(from_x[i] + step);
            b[i][0] = load2(from_y[i]), b[i][1] = load2(from_y[i] + step);
            from_x[i] += sx, from_y[i] += sy;
        }
        UNROLL for (int i = 0; i < PAIR; i++) {
            UNROLL for (int j = 0; j < PAIR; j++) {
                UNROLL for (int e = 0; e < PAIR; e++) {
                    sum[i][j][0][e] += product(a[i][0].at[e], b[j][0].at[e]);
                    sum[i][j][1][e] += product(a[i][0].at[e], b[j][1].at[e]);
                    sum[i][j][1][e] += product(a[i][1].at[e], b[j][0].at[e]);
                    sum[i][j][2][e] += product(a[i][1].at[e], b[j][1].at[e]);
                }
            }
        }
    }
    UNROLL for (int i = 0; i < PAIR; i++) {
        UNROLL for (int j = 0; j < PAIR; j++) {
            if (r0 + i >= rows || o0 + j >= outs) continue;
            UNROLL for (int h = 0; h < 3; h++) {
                Two r;
                UNROLL for (int e = 0; e < PAIR; e++) {
                    const u32 t = reduce_lazy(sum[i][j][h][e], c.q, c.q_inv);
                    r.at[e] = reduce(product(t, c.r2), c.q, c.q_inv);
                }
                store(out + ((size_t)(r0 + i) * outs + o0 + j) * 3 * step + h * step + point, r);
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
