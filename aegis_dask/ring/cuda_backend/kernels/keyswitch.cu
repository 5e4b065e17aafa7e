// Base conversion and the key inner product.
#include "arithmetic.cuh"

#define CONVERT_COLUMNS 64  // columns of a block, which stages them in shared memory
#define CONVERT_SHARES 4    // threads of a column: each makes its share of the targets
#define CONVERT_THREADS (CONVERT_COLUMNS * CONVERT_SHARES)
#define TARGETS 4  // that a thread accumulates at a time
#define MAX_SOURCES 48

// dst[j] = sum_i mat[j, i] src[i] 2^-32 mod q_j, minus v times the last column if `quotient` is
// given (`aegis_dask.ring.conversion`). Rows of polynomial b are `rows + b stride`. Canonical.
//
// Products are below 2^60: 16 fit in 64 bits, and before every eight more the sum is cut below
// 2 p 2^32. Grid: one block for CONVERT_COLUMNS columns of a polynomial.
PHASED(convert, CONVERT_THREADS)
(u32* dst, const int* dst_rows, int dst_stride, const u32* src, const int* src_rows,
 int src_stride, const u32* mat, const u32* quotient, int sources, int targets,
 const int* primes, const Prime* table) {
    SHARED(u32, y, (MAX_SOURCES + 1) * CONVERT_COLUMNS);
    const u32 c = threadIdx.x % CONVERT_COLUMNS, share = threadIdx.x / CONVERT_COLUMNS;
    const u32 poly = blockIdx.x / (N / CONVERT_COLUMNS);
    const u32 column = blockIdx.x % (N / CONVERT_COLUMNS) * CONVERT_COLUMNS + c;
    for (int i = share; i < sources; i += CONVERT_SHARES)
        y[i * CONVERT_COLUMNS + c] = src[((size_t)src_rows[i] + (size_t)poly * src_stride) * N + column];
    BARRIER;
    if (quotient && share == 0) {
        u64 v = 1ull << 55;
        for (int i = 0; i < sources; i++) v += product(y[i * CONVERT_COLUMNS + c], quotient[i]);
        y[sources * CONVERT_COLUMNS + c] = (u32)(v >> 56);
    }
    BARRIER;
    const int terms = sources + (quotient ? 1 : 0);
    for (int first = share * TARGETS; first < targets; first += CONVERT_SHARES * TARGETS) {
        u64 sum[TARGETS];
        u32 p[TARGETS];
        UNROLL for (int t = 0; t < TARGETS; t++) {
            sum[t] = 0;
            p[t] = table[primes[min(first + t, targets - 1)]].q;
        }
        for (int i0 = 0; i0 < terms; i0 += 8) {
            if (i0 >= 16) {
                UNROLL for (int t = 0; t < TARGETS; t++) sum[t] = cut(sum[t], p[t]);
            }
            const int stop = min(i0 + 8, terms);
            for (int i = i0; i < stop; i++) {
                const u32 v = y[i * CONVERT_COLUMNS + c];
                UNROLL for (int t = 0; t < TARGETS; t++)
                    sum[t] += product(v, mat[min(first + t, targets - 1) * terms + i]);
            }
        }
        UNROLL for (int t = 0; t < TARGETS; t++) {
            if (first + t >= targets) break;
            const u32 q_inv = table[primes[first + t]].q_inv;
            dst[((size_t)dst_rows[first + t] + (size_t)poly * dst_stride) * N + column] =
                reduce(sum[t], p[t], q_inv);
        }
    }
}

// out[b, 0/1, k] = sum_d x_d[k] key_b/a[d, k] 2^-32, the key in Montgomery form: row
// `key_rows[d, k]` of it belongs to digit d and limb k. x_d[k] is own[b, k] on the digit's own limbs
// (`digit_of[k] == d`), else digits[b, d, k]. At most eight digits: 8 p^2 < 4 p 2^32.
// Grid: one block for THREADS points of (limb, b), polynomials of one limb next to each other.
KERNEL(inner_product, THREADS)
(u32* out, const u32* digits, const u32* own, int own_limbs, const u32* key_b, const u32* key_a,
 const int* key_rows, const int* digit_of, int count, int limbs, int batch, const int* primes,
 const Prime* table) {
    const u32 piece = blockIdx.x / batch, b = blockIdx.x % batch;
    const u32 k = piece / (N / THREADS), point = piece % (N / THREADS) * THREADS + threadIdx.x;
    const Prime c = table[primes[k]];
    u64 s0 = 0, s1 = 0;
    for (int d = 0; d < count; d++) {
        const u32 x = digit_of[k] == d
                          ? own[((size_t)b * own_limbs + k) * N + point]
                          : digits[(((size_t)b * count + d) * limbs + k) * N + point];
        const size_t key = (size_t)key_rows[d * limbs + k] * N + point;
        s0 += product(x, key_b[key]);
        s1 += product(x, key_a[key]);
    }
    out[((size_t)(2 * b) * limbs + k) * N + point] = reduce(s0, c.q, c.q_inv);
    out[((size_t)(2 * b + 1) * limbs + k) * N + point] = reduce(s1, c.q, c.q_inv);
}
