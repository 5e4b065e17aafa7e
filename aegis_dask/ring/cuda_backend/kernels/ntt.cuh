// Negacyclic number-theoretic transform in two launches: `row` stages on columns, then eight stages
// on 256 contiguous words (the tail); the inverse the other way round.
//
// Natural to bit-reversed order (Cooley-Tukey), back with Gentleman-Sande butterflies. Forward
// butterflies take and give [0, 4p), inverse ones [0, 2p). Twiddles are those of
// `aegis_dask.ring.tables`: `scalar[i] = psi^brv(i)` for i < N/16, and for the last four stages
// `lanes[tail][1 << s + k - 1][lane]`, so that neighbouring threads read neighbouring words.
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

DEVICE void forward_butterfly(u32& x, u32& y, Factor w, u32 p) {
    u32 a = halve4(x, p), t = shoup(y, w, p);
    x = a + t;
    y = a + 2 * p - t;
}

DEVICE void inverse_butterfly(u32& x, u32& y, Factor w, u32 p) {
    u32 s = x + y, d = x + 2 * p - y;
    x = halve4(s, p);
    y = shoup(d, w, p);
}

// `STAGES` stages on 2^STAGES registers; the twiddle of group m of stage s is w[(k << s) + m].
template <int STAGES> DEVICE void forward_stages(u32* x, const Factor* w, u32 k, u32 p) {
    UNROLL for (int s = 0; s < STAGES; s++) {
        const int half = (1 << STAGES) >> (s + 1);
        UNROLL for (int m = 0; m < 1 << s; m++) {
            Factor f = w[(k << s) + m];
            UNROLL for (int j = 0; j < half; j++)
                forward_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f, p);
        }
    }
}

template <int STAGES> DEVICE void inverse_stages(u32* x, const Factor* w, u32 k, u32 p) {
    UNROLL for (int s = STAGES - 1; s >= 0; s--) {
        const int half = (1 << STAGES) >> (s + 1);
        UNROLL for (int m = 0; m < 1 << s; m++) {
            Factor f = w[(k << s) + m];
            UNROLL for (int j = 0; j < half; j++)
                inverse_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f, p);
        }
    }
}

// The last four stages on 16 registers, with the twiddles of one lane.
DEVICE void forward_lane(u32* x, const Factor* lanes, u32 p) {
    UNROLL for (int s = 0; s < 4; s++) {
        const int half = 8 >> s;
        UNROLL for (int m = 0; m < 1 << s; m++) {
            Factor f = lanes[((1 << s) + m - 1) * 16];
            UNROLL for (int j = 0; j < half; j++)
                forward_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f, p);
        }
    }
}

DEVICE void inverse_lane(u32* x, const Factor* lanes, u32 p) {
    UNROLL for (int s = 3; s >= 0; s--) {
        const int half = 8 >> s;
        UNROLL for (int m = 0; m < 1 << s; m++) {
            Factor f = lanes[((1 << s) + m - 1) * 16];
            UNROLL for (int j = 0; j < half; j++)
                inverse_butterfly(x[2 * half * m + j], x[2 * half * m + j + half], f, p);
        }
    }
}

// Where row `row` of column c stands in shared memory: threads of a warp meet no bank twice.
DEVICE u32 row_place(u32 row, u32 c) { return (row + row / HELD) * COLUMNS + c; }

DEVICE u32 tail_place(u32 e) { return e + e / 16; }

// Twiddles of one direction, of all primes.
struct Twiddles {
    const Factor* scalar;  // [prime, N / 16]
    const Factor* lanes;   // [prime, N / 256, 15, 16]
};

DEVICE const Factor* scalar_of(Twiddles t, int prime) { return t.scalar + (size_t)prime * (N / 16); }

DEVICE const Factor* lanes_of(Twiddles t, int prime, u32 tail, u32 lane) {
    return t.lanes + ((size_t)prime * (N / TAIL) + tail) * 15 * 16 + lane;
}

// Rows that a launch treats: number r of them is `rows[r % period] + (r / period) stride`, of prime
// `primes[r % period]`; without `rows`, r % period itself counts.
struct Rows {
    const int* rows;
    const int* primes;
    int period, stride;
};

DEVICE size_t row_of(Rows r, u32 number) {
    int k = number % r.period;
    return (size_t)(r.rows ? r.rows[k] : k) + (size_t)(number / r.period) * r.stride;
}

DEVICE int prime_of(Rows r, u32 number) { return r.primes[number % r.period]; }
