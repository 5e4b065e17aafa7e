// Negacyclic number-theoretic transform in two launches: `row` stages on columns, then eight stages
// on 256 contiguous words (the tail); the inverse the other way round.
//
// Natural to bit-reversed order (Cooley-Tukey), back with Gentleman-Sande butterflies. Forward
// butterflies take and give [0, 4p), inverse ones [0, 2p); `p2` is 2p. Twiddles are
// `scalar[i] = psi^brv(i)` for i < N/16: all but the last four stages. Those would take N different
// ones, twice the words that they are for. So word j of tail T is multiplied by `twist[T][j mod 16]`
// = psi_T^(j mod 16), psi_T = psi^(2 brv(T) + 1), before the tail's stages, which makes its last
// four the same in all tails: `lanes`, 240 of them, in pairs as they are read.
#pragma once
#include "arithmetic.cuh"

#define ROW_STAGES (LOG_N - 8)
#define FIRST ((ROW_STAGES + 1) / 2)  // stages of the first round, in registers
#define SECOND (ROW_STAGES - FIRST)
#define HELD (1 << FIRST)     // words that a thread holds
#define GROUPS (1 << SECOND)  // threads that share a column
#define COLUMNS 16
#define ROW_THREADS (COLUMNS * GROUPS)
#define ROW_WORDS ((1 << ROW_STAGES) * COLUMNS + GROUPS * COLUMNS)

#define TAIL 256
#define TAILS (N / TAIL < 8 ? N / TAIL : 8)  // per block
#define TAIL_THREADS (16 * TAILS)
#define TAIL_WORDS (TAILS * 17 * 16)

DEVICE void forward_butterfly(u32& x, u32& y, Factor w, u32 p, u32 p2) {
    u32 a = below(x, p2), t = shoup(y, w, p);
    x = a + t;
    y = a + p2 - t;
}

DEVICE void inverse_butterfly(u32& x, u32& y, Factor w, u32 p, u32 p2) {
    u32 s = x + y, d = x + p2 - y;
    x = below(s, p2);
    y = shoup(d, w, p);
}

// Stages are templates, not loops: the compiler unrolls the loops inside, whose bounds are constants
// then, and keeps x in registers.

// Stages S to STAGES - 1 of 2^STAGES registers; `w.pair(s, m)` are the twiddles of groups m and m + 1
// of stage s.
template <int STAGES, int S, class Source> DEVICE void forward_from(u32* x, Source w, u32 p, u32 p2) {
    if constexpr (S < STAGES) {
        constexpr int half = (1 << STAGES) >> (S + 1);
        UNROLL for (int m = 0; m < 1 << S; m += 2) {
            const Pair f = w.pair(S, m);
            UNROLL for (int j = 0; j < half; j++)
                forward_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f.a, p, p2);
            if (S > 0) {
                UNROLL for (int j = 0; j < half; j++)
                    forward_butterfly(x[2 * half * (m + 1) + j], x[2 * half * (m + 1) + j + half],
                                      f.b, p, p2);
            }
        }
        forward_from<STAGES, S + 1>(x, w, p, p2);
    }
}

// Stages S to 0.
template <int STAGES, int S, class Source> DEVICE void inverse_from(u32* x, Source w, u32 p, u32 p2) {
    if constexpr (S >= 0) {
        constexpr int half = (1 << STAGES) >> (S + 1);
        UNROLL for (int m = 0; m < 1 << S; m += 2) {
            const Pair f = w.pair(S, m);
            UNROLL for (int j = 0; j < half; j++)
                inverse_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f.a, p, p2);
            if (S > 0) {
                UNROLL for (int j = 0; j < half; j++)
                    inverse_butterfly(x[2 * half * (m + 1) + j], x[2 * half * (m + 1) + j + half],
                                      f.b, p, p2);
            }
        }
        inverse_from<STAGES, S - 1>(x, w, p, p2);
    }
}

// Twiddles below node k: that of group m of stage s is `w[(k << s) + m]`. Stage 0 has one.
struct Nodes {
    const Factor* w;
    u32 k;
    INLINE Pair pair(int s, int m) const {
        const Factor* at = w + (k << s) + m;
        return s == 0 ? Pair{*at, *at} : *(const Pair*)at;
    }
};

// The same of the last four stages, for one lane: entry 2^s + m of 16 (entry 0 is entry 1).
struct Lane {
    const Pair* w;
    INLINE Pair pair(int s, int m) const { return w[((1 << s) + m) / 2 * 16]; }
};

template <int STAGES> DEVICE void forward_stages(u32* x, const Factor* w, u32 k, u32 p, u32 p2) {
    forward_from<STAGES, 0>(x, Nodes{w, k}, p, p2);
}

template <int STAGES> DEVICE void inverse_stages(u32* x, const Factor* w, u32 k, u32 p, u32 p2) {
    inverse_from<STAGES, STAGES - 1>(x, Nodes{w, k}, p, p2);
}

// Twiddles of one direction, of all primes.
struct Twiddles {
    const Factor* scalar;  // [prime, N / 16]
    const Pair* lanes;     // [prime, 8, 16]
    const Factor* twist;   // [prime, N / 256, 16]
};

DEVICE const Factor* scalar_of(Twiddles t, int prime) { return t.scalar + (size_t)prime * (N / 16); }

DEVICE Lane lane_of(Twiddles t, int prime, u32 lane) { return {t.lanes + prime * 8 * 16 + lane}; }

DEVICE Factor twist_of(Twiddles t, int prime, u32 tail, u32 lane) {
    return t.twist[((size_t)prime * (N / TAIL) + tail) * 16 + lane];
}

// Rows that a launch treats: block (x, y, z) is of row `rows[z] + x stride`, of prime `primes[z]`;
// without `rows`, z itself counts. So blocks that follow each other share their twiddles.
struct Rows {
    const int* rows;
    const int* primes;
    int stride;
};

DEVICE size_t row_at(Rows r, u32 poly) {
    return (size_t)(r.rows ? r.rows[blockIdx.z] : blockIdx.z) + (size_t)poly * r.stride;
}

DEVICE size_t row_of(Rows r) { return row_at(r, blockIdx.x); }

DEVICE int prime_of(Rows r) { return r.primes[blockIdx.z]; }
