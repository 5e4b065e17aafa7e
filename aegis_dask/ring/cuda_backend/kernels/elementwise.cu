// Kernels that touch each residue once. Grid: (blocks of a polynomial's limb * polynomials, limbs);
// `primes` holds the prime of each limb. A thread treats VECTOR points next to each other.
#include "arithmetic.cuh"

#define PIECES(each) (N / (THREADS * (each)))  // blocks of a limb, of `each` points a thread
#define EACH UNROLL for (int i = 0; i < VECTOR; i++)

// Of this thread: its limb and polynomial, its first point in that and in the array.
#define PLACE(each)                                                                       \
    const u32 limbs = gridDim.y, limb = blockIdx.y, poly = blockIdx.x / PIECES(each);     \
    const u32 point = (blockIdx.x % PIECES(each) * THREADS + threadIdx.x) * (each);       \
    const size_t at = ((size_t)poly * limbs + limb) * N + point;
#define POINTS(each)                                                                      \
    PLACE(each)                                                                           \
    const Prime c = table[primes[limb]];                                                  \
    const u32 p = c.q;

// The same points of the polynomial of y that goes with this one of x.
#define OTHER (((size_t)(which ? which[poly] : poly) * limbs + limb) * N + point)

KERNEL(add, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, const int* primes,
 const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at), b = load(y + OTHER);
    Quad r;
    EACH r.at[i] = add_mod(a.at[i], b.at[i], p);
    store(out + at, r);
}

KERNEL(sub, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, const int* primes,
 const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at), b = load(y + OTHER);
    Quad r;
    EACH r.at[i] = sub_mod(a.at[i], b.at[i], p);
    store(out + at, r);
}

KERNEL(negate, THREADS)
(u32* out, const u32* x, const int* primes, const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at);
    Quad r;
    EACH r.at[i] = sub_mod(0, a.at[i], p);
    store(out + at, r);
}

// out = r, or out += r.
#define STORE_OR_ADD                                          \
    if (accumulate) {                                         \
        const Quad before = load(out + at);                   \
        EACH r.at[i] = add_mod(before.at[i], r.at[i], p);     \
    }                                                         \
    store(out + at, r);

// x y: two Montgomery reductions, the second times 2^64.
KERNEL(multiply, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, int accumulate,
 const int* primes, const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at), b = load(y + OTHER);
    Quad r;
    EACH {
        const u32 t = reduce_lazy(product(a.at[i], b.at[i]), p, c.q_inv);
        r.at[i] = reduce(product(t, c.r2), p, c.q_inv);
    }
    STORE_OR_ADD
}

// Constants `[limb, row, run]`, each for N / runs points of `share` polynomials: the one of this
// thread's points.
#define RUN (((size_t)limb * rows + poly / share) * runs + (point * runs >> LOG_N))

// x w, w constant over runs.
KERNEL(multiply_runs, THREADS)
(u32* out, const u32* x, const Factor* w, int runs, int rows, int share, int accumulate,
 const int* primes, const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at);
    const Factor f = w[RUN];
    Quad r;
    EACH r.at[i] = shoup_mod(a.at[i], f, p);
    STORE_OR_ADD
}

KERNEL(add_runs, THREADS)
(u32* out, const u32* x, const u32* w, int runs, int rows, int share, const int* primes,
 const Prime* table) {
    POINTS(VECTOR);
    const Quad a = load(x + at);
    const u32 b = w[RUN];
    Quad r;
    EACH r.at[i] = add_mod(a.at[i], b, p);
    store(out + at, r);
}

// [b, 2] x [b, 2] -> [b, 3]: (x0 y0, x0 y1 + x1 y0, x1 y1). `poly` counts pairs here.
KERNEL(tensor, THREADS)
(u32* out, const u32* x, const u32* y, const int* which, const int* primes,
 const Prime* table) {
    POINTS(VECTOR);
    const size_t step = (size_t)limbs * N;
    const u32* own_x = x + (size_t)(2 * poly * limbs + limb) * N + point;
    const u32* own_y = y + ((size_t)2 * (which ? which[poly] : poly) * limbs + limb) * N + point;
    u32* own_out = out + (size_t)(3 * poly * limbs + limb) * N + point;
    (void)at;
    const Quad a0 = load(own_x), a1 = load(own_x + step), b0 = load(own_y), b1 = load(own_y + step);
    Quad r0, r1, r2;
    EACH {
        // Below 3p: a sum of two products with y stays below 6 p^2 < 4 p 2^32.
        const u32 x0 = reduce_lazy(product(a0.at[i], c.r2), p, c.q_inv);
        const u32 x1 = reduce_lazy(product(a1.at[i], c.r2), p, c.q_inv);
        r0.at[i] = reduce(product(x0, b0.at[i]), p, c.q_inv);
        r1.at[i] = reduce(product(x0, b1.at[i]) + product(x1, b0.at[i]), p, c.q_inv);
        r2.at[i] = reduce(product(x1, b1.at[i]), p, c.q_inv);
    }
    store(own_out, r0);
    store(own_out + step, r1);
    store(own_out + 2 * step, r2);
}

// Residues of signed integers [poly, N].
KERNEL(from_signed, THREADS)
(u32* out, const i64* x, const int* primes, const Prime* table) {
    POINTS(1);
    (void)p;
    out[at] = signed_residue(x[(size_t)poly * N + point], c);
}

// out = x under X -> X^g. Neighbours come from neighbours: 2^k points at a multiple of 2^k from 2^k
// such points, in another order.
KERNEL(automorphism, THREADS)(u32* out, const u32* x, u32 g) {
    PLACE(1);
    out[at] = x[at - point + source_of(point, g)];
}

// acc += automorphism(x) y 2^-32, y[limb] a plaintext in Montgomery form.
KERNEL(automorphism_multiply_add, THREADS)
(u32* acc, const u32* x, const u32* y, u32 g, const int* primes, const Prime* table) {
    POINTS(1);
    const u32 v = x[at - point + source_of(point, g)];
    const u32 t = reduce(product(v, y[(size_t)limb * N + point]), p, c.q_inv);
    acc[at] = add_mod(acc[at], t, p);
}
