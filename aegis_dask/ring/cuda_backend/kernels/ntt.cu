// Transforms of batches of limbs. Grids: (polynomials, 256 / COLUMNS, limbs) for the row stages and
// (polynomials, N / 256 / TAILS, limbs) for the tails.
#include "ntt.cuh"

// Of this thread: its column, the threads of which hold rows g + i GROUPS or g HELD + i, and where
// those stand in shared memory. One row is left out after every HELD, so that threads of a warp meet
// no bank twice.
#define ROWS_OF_THREAD                                                                             \
    SHARED(u32, shared, ROW_WORDS);                                                                \
    const u32 c = threadIdx.x % COLUMNS, g = threadIdx.x / COLUMNS;                                \
    u32 *strided = shared + threadIdx.x, *adjacent = shared + g * (HELD + 1) * COLUMNS + c;        \
    u32 x[HELD];
#define STRIDED(i) (((i) * GROUPS + (i) * GROUPS / HELD) * COLUMNS)

// First launch of the forward transform: [0, 4p) in and out. src and dst may be the same.
PHASED(ntt_rows, ROW_THREADS)
(u32* dst, const u32* src, Rows rows, Twiddles twiddles, const Prime* table) {
    ROWS_OF_THREAD
    const int prime = prime_of(rows);
    const u32 p = table[prime].q, p2 = table[prime].q2;
    const Factor* w = scalar_of(twiddles, prime);
    const size_t base = row_of(rows) * N + blockIdx.y * COLUMNS + c;
    UNROLL for (int i = 0; i < HELD; i++) x[i] = src[base + (size_t)(g + i * GROUPS) * TAIL];
    forward_stages<FIRST>(x, w, 1, p, p2);
    UNROLL for (int i = 0; i < HELD; i++) strided[STRIDED(i)] = x[i];
    BARRIER;
    UNROLL for (int i = 0; i < HELD; i++) x[i] = adjacent[i * COLUMNS];
    UNROLL for (int u = 0; u < HELD / GROUPS; u++)
        forward_stages<SECOND>(x + u * GROUPS, w, HELD + g * (HELD / GROUPS) + u, p, p2);
    UNROLL for (int i = 0; i < HELD; i++) dst[base + (size_t)(g * HELD + i) * TAIL] = x[i];
}

// Second launch of the inverse transform: [0, 2p) -> [0, p), times the factor of the limb.
PHASED(intt_rows, ROW_THREADS)
(u32* x_, Rows rows, const Factor* factors, Twiddles twiddles, const Prime* table) {
    ROWS_OF_THREAD
    const int prime = prime_of(rows);
    const u32 p = table[prime].q, p2 = table[prime].q2;
    const Factor* w = scalar_of(twiddles, prime);
    const Factor f = factors[blockIdx.z];
    const size_t base = row_of(rows) * N + blockIdx.y * COLUMNS + c;
    UNROLL for (int i = 0; i < HELD; i++) x[i] = x_[base + (size_t)(g * HELD + i) * TAIL];
    UNROLL for (int u = 0; u < HELD / GROUPS; u++)
        inverse_stages<SECOND>(x + u * GROUPS, w, HELD + g * (HELD / GROUPS) + u, p, p2);
    UNROLL for (int i = 0; i < HELD; i++) adjacent[i * COLUMNS] = x[i];
    BARRIER;
    UNROLL for (int i = 0; i < HELD; i++) x[i] = strided[STRIDED(i)];
    inverse_stages<FIRST>(x, w, 1, p, p2);
    UNROLL for (int i = 0; i < HELD; i++)
        x_[base + (size_t)(g + i * GROUPS) * TAIL] = shoup_mod(x[i], f, p);
}

// Of this thread: its lane of 16, the tail of 256 words that these 16 threads share, and their part
// of shared memory. They are of one warp, and a thread writes there only what it alone has read since
// the last barrier: what it reads last of a tail, it writes first of the next.
#define TAIL_OF_THREAD                                                                             \
    SHARED(u32, shared, TAIL_WORDS);                                                               \
    const u32 lane = threadIdx.x % 16, own = threadIdx.x / 16, tail = blockIdx.y * TAILS + own;    \
    u32* mine = shared + own * 17 * 16;                                                            \
    u32 x[16];

// The tail of the forward transform up to the last butterfly, as a piece of a kernel: it reads the
// words at `source` and leaves word `lane + 16 i` of the tail in x[i], in [0, 4p).
#define FORWARD_TAIL(source)                                                                       \
    UNROLL for (int i = 0; i < 16; i++)                                                            \
        x[i] = shoup((source)[tail * TAIL + lane + 16 * i], twist, p);                             \
    forward_stages<4>(x, scalar_of(twiddles, prime), N / TAIL + tail, p, p2);                      \
    UNROLL for (int i = 0; i < 16; i++) mine[17 * i + lane] = x[i];                                \
    WARP_BARRIER;                                                                                  \
    UNROLL for (int i = 0; i < 16; i++) x[i] = mine[17 * lane + i];                                \
    forward_from<4, 0>(x, lane_of(twiddles, prime, lane), p, p2);                                  \
    UNROLL for (int i = 0; i < 16; i++) mine[17 * lane + i] = x[i];                                \
    WARP_BARRIER;                                                                                  \
    UNROLL for (int i = 0; i < 16; i++) x[i] = mine[17 * i + lane];

// Second launch of the forward transform, in place: canonical.
PHASED(ntt_tails, TAIL_THREADS)(u32* x_, Rows rows, Twiddles twiddles, const Prime* table) {
    const int prime = prime_of(rows);
    const u32 p = table[prime].q, p2 = table[prime].q2;
    u32* row = x_ + row_of(rows) * N;
    TAIL_OF_THREAD
    const Factor twist = twist_of(twiddles, prime, tail, lane);
    FORWARD_TAIL(row)
    UNROLL for (int i = 0; i < 16; i++) row[tail * TAIL + lane + 16 * i] = canonical4(x[i], p);
}

// An addend of a division, `[batch, used, limbs, N]`, which is repeated if there are more
// polynomials, `step` rows from one to the next; nullptr for none.
struct Addend {
    const u32* data;
    int used, limbs, batch, step;
};

DEVICE bool has_addend(Addend a, int poly, int components) {
    return a.data && poly % components < a.used;
}

// Null where there is none.
DEVICE const u32* addend_row(Addend a, int poly, int components, int row) {
    if (!has_addend(a, poly, components)) return nullptr;
    const size_t first = (size_t)(poly / components % a.batch) * a.step;
    return a.data + (first + poly % components * a.limbs + row) * N;
}

// `f x - transformed (+ g addend[point])`, of x in [0, 2p) and transformed in [0, 4p).
DEVICE u32 divided(u32 x, u32 transformed, Factor f, const u32* addend, u32 point, Factor g, u32 p,
                   u32 p2) {
    u32 t = shoup(x, f, p) + p2 - below(transformed, p2);  // (0, 4p)
    if (addend) t = below(t, p2) + shoup(addend[point], g, p);
    return canonical4(t, p);
}

// Second launch of the forward transform of a remainder, and the division that it is for:
// `out = factor x - NTT(remainder) (+ addend_factor addend)`, then X -> X^g by scattering, with
// `inverse` = g^-1. The x of limb k is row target_rows[k] (any where it is -1, the factors are 0
// there) of `x_limbs`.
PHASED(ntt_tails_divide, TAIL_THREADS)
(u32* out, const u32* remainder, const u32* x_, int x_limbs, int components, const int* target_rows,
 const Factor* factors, Addend addend, const Factor* addend_factors, u32 inverse, Rows rows,
 Twiddles twiddles, const Prime* table) {
    const int prime = prime_of(rows);
    const u32 p = table[prime].q, p2 = table[prime].q2;
    const int k = blockIdx.z, poly = blockIdx.x;
    const int target = max(target_rows[k], 0);
    const Factor f = factors[k], g = addend_factors[k];
    const size_t row = row_of(rows) * N;
    const u32* own_x = x_ + ((size_t)poly * x_limbs + target) * N;
    const u32* own_addend = addend_row(addend, poly, components, target);
    TAIL_OF_THREAD
    const Factor twist = twist_of(twiddles, prime, tail, lane);
    FORWARD_TAIL(remainder + row)
    UNROLL for (int i = 0; i < 16; i++) {
        const u32 point = tail * TAIL + lane + 16 * i;
        out[row + (inverse == 1 ? point : source_of(point, inverse))] =
            divided(own_x[point], x[i], f, own_addend, point, g, p, p2);
    }
}

// The same, of products of digits with several keys that are made here: x of component h, limb k is
// sum_d x_d[k] key_j,h[d, k] 2^-32, as `inner_products` makes it. It is not written and read again.
// A block has both components, so digits are read once. `target_rows` are limbs of the digits. Grid:
// (keys * batch, N / 256 / TAILS, limbs).
PHASED(ntt_tails_divide_products, TAIL_THREADS)
(u32* out, const u32* remainder, const u32* digits, const u32* own_x, int own_step, const Key* keys,
 const int* digit_of, int count, int limbs, const int* target_rows, const Factor* factors,
 Addend addend, const Factor* addend_factors, int batch, Rows rows, Twiddles twiddles,
 const Prime* table) {
    const int prime = prime_of(rows);
    const Prime c = table[prime];
    const u32 p = c.q, p2 = c.q2;
    const int limb = blockIdx.z, b = blockIdx.x % batch, poly = 2 * blockIdx.x;
    const int target = max(target_rows[limb], 0);
    const Factor f = factors[limb], g = addend_factors[limb];
    const size_t row = row_at(rows, poly) * N, other_row = row_at(rows, poly + 1) * N;
    const Key key = keys[blockIdx.x / batch];
    const u32 *key_b = key.b, *key_a = key.a;
    const int* key_rows = key.rows;
    GLOBAL(key_b), GLOBAL(key_a), GLOBAL(key_rows);
    const u32* addend_b = addend_row(addend, poly, 2, target);
    const u32* addend_a = addend_row(addend, poly + 1, 2, target);
    TAIL_OF_THREAD
    SHARED(u32, first_half, 16 * TAIL_THREADS);
    const Factor twist = twist_of(twiddles, prime, tail, lane);
    FORWARD_TAIL(remainder + row)
    UNROLL for (int i = 0; i < 16; i++) first_half[i * TAIL_THREADS + threadIdx.x] = x[i];
    FORWARD_TAIL(remainder + other_row)
    u64 s0[16], s1[16];
    const u32 first = tail * TAIL + lane;
    UNROLL for (int i = 0; i < 16; i++) s0[i] = s1[i] = 0;
    for (int d = 0; d < count; d++) {
        const u32* digit = digit_of[target] == d
                               ? own_x + ((size_t)b * own_step + target) * N
                               : digits + (((size_t)b * count + d) * limbs + target) * N;
        const size_t at = (size_t)key_rows[d * limbs + target] * N;
        UNROLL for (int i = 0; i < 16; i++) {
            const u32 value = digit[first + 16 * i];
            s0[i] += product(value, key_b[at + first + 16 * i]);
            s1[i] += product(value, key_a[at + first + 16 * i]);
        }
    }
    UNROLL for (int i = 0; i < 16; i++) {
        const u32 point = first + 16 * i;
        const u32 to = key.inverse == 1 ? point : source_of(point, key.inverse);
        out[row + to] = divided(reduce(s0[i], p, c.q_inv), first_half[i * TAIL_THREADS + threadIdx.x],
                                f, addend_b, point, g, p, p2);
        out[other_row + to] =
            divided(reduce(s1[i], p, c.q_inv), x[i], f, addend_a, point, g, p, p2);
    }
}

// Second launch of the forward transform of raised digits, and their product with a key: what
// `inner_product` computes, without writing the transformed digits. Grid: as above.
PHASED(ntt_tails_inner, TAIL_THREADS)
(u32* out, const u32* digits, const u32* own_x, int own_step, const u32* key_b, const u32* key_a,
 const int* key_rows, const int* digit_of, int count, int limbs, const int* primes,
 Twiddles twiddles, const Prime* table) {
    TAIL_OF_THREAD
    const int k = blockIdx.z, b = blockIdx.x;
    const int prime = primes[k];
    const Prime c = table[prime];
    const u32 p = c.q, p2 = c.q2;
    const Factor twist = twist_of(twiddles, prime, tail, lane);
    u64 s0[16], s1[16];
    UNROLL for (int i = 0; i < 16; i++) s0[i] = s1[i] = 0;
    for (int d = 0; d < count; d++) {
        if (digit_of[k] == d) {
            const u32* row = own_x + ((size_t)b * own_step + k) * N + tail * TAIL + lane;
            UNROLL for (int i = 0; i < 16; i++) x[i] = row[16 * i];
        } else {
            FORWARD_TAIL(digits + (((size_t)b * count + d) * limbs + k) * N)
            UNROLL for (int i = 0; i < 16; i++) x[i] = canonical4(x[i], p);
        }
        const size_t key = (size_t)key_rows[d * limbs + k] * N + tail * TAIL + lane;
        UNROLL for (int i = 0; i < 16; i++) {
            s0[i] += product(x[i], key_b[key + 16 * i]);
            s1[i] += product(x[i], key_a[key + 16 * i]);
        }
    }
    u32* to = out + ((size_t)(2 * b) * limbs + k) * N + tail * TAIL + lane;
    UNROLL for (int i = 0; i < 16; i++) {
        to[16 * i] = reduce(s0[i], p, c.q_inv);
        to[(size_t)limbs * N + 16 * i] = reduce(s1[i], p, c.q_inv);
    }
}

// From word `lane + 16 i` of the tail in x[i], [0, 2p), to the same words before the tail's stages.
#define INVERSE_TAIL(destination)                                                                  \
    UNROLL for (int i = 0; i < 16; i++) mine[17 * i + lane] = x[i];                                \
    WARP_BARRIER;                                                                                  \
    UNROLL for (int i = 0; i < 16; i++) x[i] = mine[17 * lane + i];                                \
    inverse_from<4, 3>(x, lane_of(twiddles, prime, lane), p, p2);                                  \
    UNROLL for (int i = 0; i < 16; i++) mine[17 * lane + i] = x[i];                                \
    WARP_BARRIER;                                                                                  \
    UNROLL for (int i = 0; i < 16; i++) x[i] = mine[17 * i + lane];                                \
    inverse_stages<4>(x, scalar_of(twiddles, prime), N / TAIL + tail, p, p2);                      \
    UNROLL for (int i = 0; i < 16; i++)                                                            \
        (destination)[tail * TAIL + lane + 16 * i] = shoup(x[i], twist, p);

// First launch of the inverse transform: [0, 2p) -> [0, 2p). Rows are those of src; dst has those of
// its limbs next to each other. With an addend, `addend_factors[k] addend` is added first (see
// `ntt_tails_divide`).
PHASED(intt_tails, TAIL_THREADS)
(u32* dst, const u32* src, Addend addend, int components, const Factor* addend_factors, Rows rows,
 Twiddles twiddles, const Prime* table) {
    TAIL_OF_THREAD
    const int prime = prime_of(rows);
    const u32 p = table[prime].q, p2 = table[prime].q2;
    const u32* row = src + row_of(rows) * N;
    UNROLL for (int i = 0; i < 16; i++) x[i] = row[tail * TAIL + lane + 16 * i];
    const Factor twist = twist_of(twiddles, prime, tail, lane);
    const int k = blockIdx.z, poly = blockIdx.x;
    if (has_addend(addend, poly, components) && addend_factors[k].w) {
        const Factor f = addend_factors[k];
        const u32* own_addend = addend_row(addend, poly, components, rows.rows[k]);
        UNROLL for (int i = 0; i < 16; i++)
            x[i] = below(x[i] + shoup(own_addend[tail * TAIL + lane + 16 * i], f, p), p2);
    }
    INVERSE_TAIL(dst + ((size_t)poly * gridDim.z + k) * N)
}
