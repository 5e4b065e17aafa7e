// Kernels that touch each residue once. Grid: one block for THREADS points of a row, rows counted
// `poly * limbs + limb`; `primes` holds the prime of each limb.
#include "arithmetic.cuh"

// Of this thread: its row, the limb and polynomial of that, its point in the row and in the array.
#define POINT                                                                  \
    const u32 row = blockIdx.x / (N / THREADS), limb = row % limbs;            \
    const u32 point = blockIdx.x % (N / THREADS) * THREADS + threadIdx.x;      \
    const size_t at = (size_t)row * N + point;                                 \
    const u32 poly = row / limbs;                                              \
    const Prime c = table[primes[limb]];                                       \
    const u32 p = c.q;

// The same point of the polynomial of y that goes with this one of x.
#define OTHER (((size_t)(which ? which[poly] : poly) * limbs + limb) * N + point)

KERNEL(add, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, int limbs, const int* primes,
 const Prime* table) {
    POINT;
    out[at] = add_mod(x[at], y[OTHER], p);
}

KERNEL(sub, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, int limbs, const int* primes,
 const Prime* table) {
    POINT;
    out[at] = sub_mod(x[at], y[OTHER], p);
}

KERNEL(negate, THREADS)
(u32* out, const u32* x, int limbs, const int* primes, const Prime* table) {
    POINT;
    (void)poly;
    out[at] = sub_mod(0, x[at], p);
}

// out = x y, or out += x y: two Montgomery reductions, the second times 2^64.
KERNEL(multiply, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, int accumulate, int limbs,
 const int* primes, const Prime* table) {
    POINT;
    u32 t = reduce_lazy(product(x[at], y[OTHER]), p, c.q_inv);
    t = reduce(product(t, c.r2), p, c.q_inv);
    out[at] = accumulate ? add_mod(out[at], t, p) : t;
}

// out = x w, or out += x w, w[limb, run] constant over N / runs points.
KERNEL(multiply_runs, THREADS)
(u32* out, const u32* x, const Factor* w, int runs, int accumulate, int limbs, const int* primes,
 const Prime* table) {
    POINT;
    (void)poly;
    u32 t = shoup_mod(x[at], w[limb * runs + point / (N / runs)], p);
    out[at] = accumulate ? add_mod(out[at], t, p) : t;
}

KERNEL(add_runs, THREADS)
(u32* out, const u32* x, const u32* w, int runs, int limbs, const int* primes,
 const Prime* table) {
    POINT;
    (void)poly;
    out[at] = add_mod(x[at], w[limb * runs + point / (N / runs)], p);
}

// [b, 2] x [b, 2] -> [b, 3]: (x0 y0, x0 y1 + x1 y0, x1 y1). `poly` counts pairs here.
KERNEL(tensor, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, int limbs, const int* primes,
 const Prime* table) {
    POINT;
    const size_t step = (size_t)limbs * N;
    const size_t ox = (size_t)(2 * poly * limbs + limb) * N + point;
    const size_t oy = ((size_t)2 * (which ? which[poly] : poly) * limbs + limb) * N + point;
    const size_t oz = (size_t)(3 * poly * limbs + limb) * N + point;
    (void)at;
    // Below 3p: a sum of two products with y stays below 6 p^2 < 4 p 2^32.
    const u32 x0 = reduce_lazy(product(x[ox], c.r2), p, c.q_inv);
    const u32 x1 = reduce_lazy(product(x[ox + step], c.r2), p, c.q_inv);
    const u32 y0 = y[oy], y1 = y[oy + step];
    out[oz] = reduce(product(x0, y0), p, c.q_inv);
    out[oz + step] = reduce(product(x0, y1) + product(x1, y0), p, c.q_inv);
    out[oz + 2 * step] = reduce(product(x1, y1), p, c.q_inv);
}

// Residues of signed integers [poly, N].
KERNEL(from_signed, THREADS)
(u32* out, const i64* x, int limbs, const int* primes, const Prime* table) {
    POINT;
    (void)p;
    out[at] = signed_residue(x[(size_t)poly * N + point], c);
}

// out[row] = x[row] under X -> X^g.
KERNEL(automorphism, THREADS)(u32* out, const u32* x, u32 g) {
    const u32 point = blockIdx.x % (N / THREADS) * THREADS + threadIdx.x;
    const size_t row = (size_t)(blockIdx.x / (N / THREADS)) * N;
    out[row + point] = x[row + source_of(point, g)];
}

// acc += automorphism(x) y 2^-32, y[limb] a plaintext in Montgomery form.
KERNEL(automorphism_multiply_add, THREADS)
(u32* acc, const u32* x, const u32* y, u32 g, int limbs, const int* primes, const Prime* table) {
    POINT;
    (void)poly;
    const u32 v = x[(size_t)row * N + source_of(point, g)];
    const u32 t = reduce(product(v, y[(size_t)limb * N + point]), p, c.q_inv);
    acc[at] = add_mod(acc[at], t, p);
}
