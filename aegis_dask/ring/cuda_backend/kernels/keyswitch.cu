// Base conversion and the key inner product.
#include "arithmetic.cuh"

#define CONVERT_WIDTH 64    // threads next to each other, with two columns each
#define CONVERT_COLUMNS (2 * CONVERT_WIDTH)  // of a block, which stages them in shared memory
#define CONVERT_SHARES 4    // threads of the same columns: each makes its share of the targets
#define CONVERT_THREADS (CONVERT_WIDTH * CONVERT_SHARES)
#define MAX_SOURCES 48

// A base conversion (`aegis_dask.ring.conversion`): from rows `src_rows` of a polynomial to rows
// `dst_rows`, of primes `primes`. The matrix is transposed, its targets filled up to a multiple of
// VECTOR; `exact` is 0 for an approximate one, which has no quotient.
struct Conversion {
    const int *dst_rows, *src_rows, *primes;
    const u32 *mat, *quotient;
    int sources, targets, exact, unused;
};

// dst[j] = sum_i mat[i, j] src[i] 2^-32 mod q_j, minus v times the last row if exact.
// Polynomial b begins at row `b stride`. Canonical.
//
// Products are below 2^60: 16 fit in 64 bits, and before every eight more the sum is cut below
// 2 p 2^32. Grid: (CONVERT_COLUMNS columns of a polynomial each, conversions).
PHASED(convert, CONVERT_THREADS)
(u32* dst, int dst_stride, const u32* src, int src_stride, const Conversion* conversions,
 const Prime* table) {
    SHARED(u32, y, (MAX_SOURCES + 1) * CONVERT_COLUMNS);
    const Conversion conversion = conversions[blockIdx.y];
    const int *dst_rows = conversion.dst_rows, *src_rows = conversion.src_rows;
    const int* primes = conversion.primes;
    const u32 *mat = conversion.mat, *quotient = conversion.quotient;
    GLOBAL(dst_rows), GLOBAL(src_rows), GLOBAL(primes), GLOBAL(mat), GLOBAL(quotient);
    const int sources = conversion.sources, targets = conversion.targets;
    const u32 c = threadIdx.x % CONVERT_WIDTH * 2, share = threadIdx.x / CONVERT_WIDTH;
    const u32 poly = blockIdx.x / (N / CONVERT_COLUMNS);
    const u32 column = blockIdx.x % (N / CONVERT_COLUMNS) * CONVERT_COLUMNS + c;
    for (int i = share; i < sources; i += CONVERT_SHARES) {
        const size_t row = (size_t)src_rows[i] + (size_t)poly * src_stride;
        *(Two*)(y + i * CONVERT_COLUMNS + c) = load2(src + row * N + column);
    }
    BARRIER;
    if (conversion.exact && threadIdx.x < CONVERT_COLUMNS) {
        u64 v = 1ull << 55;
        for (int i = 0; i < sources; i++)
            v += product(y[i * CONVERT_COLUMNS + threadIdx.x], quotient[i]);
        y[sources * CONVERT_COLUMNS + threadIdx.x] = (u32)(v >> 56);
    }
    BARRIER;
    const int terms = sources + conversion.exact;
    const int width = (targets + VECTOR - 1) / VECTOR * VECTOR;
    for (int first = share * VECTOR; first < targets; first += CONVERT_SHARES * VECTOR) {
        u64 sum[VECTOR][2];
        u32 p[VECTOR], p2[VECTOR];
        UNROLL for (int t = 0; t < VECTOR; t++) {
            sum[t][0] = sum[t][1] = 0;
            const Prime* prime = table + primes[min(first + t, targets - 1)];
            p[t] = prime->q, p2[t] = prime->q2;
        }
        const u32* row = mat + first;
        for (int i0 = 0; i0 < terms; i0 += 8) {
            if (i0 >= 16) {
                UNROLL for (int t = 0; t < VECTOR; t++) {
                    sum[t][0] = cut(sum[t][0], p2[t]);
                    sum[t][1] = cut(sum[t][1], p2[t]);
                }
            }
            const int stop = min(i0 + 8, terms);
            for (int i = i0; i < stop; i++) {
                const Two v = load2(y + i * CONVERT_COLUMNS + c);
                const Quad w = load(row);
                row += width;
                UNROLL for (int t = 0; t < VECTOR; t++) {
                    sum[t][0] += product(v.at[0], w.at[t]);
                    sum[t][1] += product(v.at[1], w.at[t]);
                }
            }
        }
        UNROLL for (int t = 0; t < VECTOR; t++) {
            if (first + t >= targets) break;
            const u32 q_inv = table[primes[first + t]].q_inv;
            const size_t to = (size_t)dst_rows[first + t] + (size_t)poly * dst_stride;
            const Two r = {reduce(sum[t][0], p[t], q_inv), reduce(sum[t][1], p[t], q_inv)};
            store(dst + to * N + column, r);
        }
    }
}

// out[j, b, 0/1, k] = sum_d x_d[k] key_j,b/a[d, k] 2^-32 for `keys` keys j. x_d[k] is own[b, k] on the
// digit's own limbs (`digit_of[k] == d`; own has `own_step` rows for each b), else digits[b, d, k].
// At most eight digits: 8 p^2 < 4 p 2^32. Then addend[b, k], if it has that limb, is added to the
// first of both, and the automorphism of the key follows by scattering. With `some`, limbs some[0],
// some[1], .. alone are made, next to each other.
// Grid: (polynomials, blocks of points, limbs): those that share a part of the keys follow each other.
KERNEL(inner_products, THREADS)
(u32* out, const u32* digits, const u32* own, int own_step, Keys all, int keys, const int* digit_of,
 int count, int limbs, const int* primes, const u32* addend, int addend_limbs, const int* some,
 const Prime* table) {
    const u32 b = blockIdx.x, k = some ? some[blockIdx.z] : blockIdx.z;
    const u32 point = (blockIdx.y * THREADS + threadIdx.x) * VECTOR;
    const Prime c = table[primes[k]];
    u64 sum[KEYS][2][VECTOR];
    UNROLL for (int j = 0; j < KEYS; j++) {
        UNROLL for (int i = 0; i < VECTOR; i++) sum[j][0][i] = sum[j][1][i] = 0;
    }
    for (int d = 0; d < count; d++) {
        const Quad x = load(point + (digit_of[k] == d
                                         ? own + ((size_t)b * own_step + k) * N
                                         : digits + (((size_t)b * count + d) * limbs + k) * N));
        UNROLL for (int j = 0; j < KEYS; j++) {
            if (j >= keys) break;
            const size_t at = (size_t)all.each[j].rows[d * limbs + k] * N + point;
            const Quad kb = load(all.each[j].b + at), ka = load(all.each[j].a + at);
            UNROLL for (int i = 0; i < VECTOR; i++) {
                sum[j][0][i] += product(x.at[i], kb.at[i]);
                sum[j][1][i] += product(x.at[i], ka.at[i]);
            }
        }
    }
    Quad added = {};
    if ((int)k < addend_limbs) added = load(addend + ((size_t)b * addend_limbs + k) * N + point);
    const size_t component = (size_t)gridDim.z * N;
    UNROLL for (int j = 0; j < KEYS; j++) {
        if (j >= keys) break;
        u32* to = out + ((size_t)j * gridDim.x + b) * 2 * component + (size_t)blockIdx.z * N;
        Quad r0, r1;
        UNROLL for (int i = 0; i < VECTOR; i++) {
            r0.at[i] = add_mod(reduce(sum[j][0][i], c.q, c.q_inv), added.at[i], c.q);
            r1.at[i] = reduce(sum[j][1][i], c.q, c.q_inv);
        }
        const u32 inverse = all.each[j].inverse;
        if (inverse == 1) {
            store(to + point, r0);
            store(to + component + point, r1);
        } else {
            store_turned(to, point, r0, inverse);
            store_turned(to + component, point, r1, inverse);
        }
    }
}
