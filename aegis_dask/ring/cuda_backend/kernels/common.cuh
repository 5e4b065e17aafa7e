// Words, per-prime constants and the macros that kernels are written with.
//
// A kernel is `KERNEL(name, threads)(arguments) { .. }`, or `PHASED(name, threads)` if its threads
// meet at a `BARRIER`, or those of a warp at a `WARP_BARRIER`. The same text is compiled by NVRTC and,
// for tests without a GPU, by a host compiler with `emulation.h`, which is why `__syncthreads` and
// `__shared__` are not written out.
#pragma once

#ifndef LOG_N
#error "LOG_N, log2 of the ring degree, is to be defined"
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef AEGIS_EMULATION
#include "emulation.h"
#else
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
#define PHASED(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
#define BARRIER __syncthreads()
#define WARP_BARRIER __syncwarp()
#define EXIT return
#define INLINE __device__ __forceinline__
#define DEVICE static INLINE
#define SHARED(type, name, count) __shared__ type name[count]
#define UNROLL _Pragma("unroll")
// Say of a pointer that was read from memory that it is to global memory.
#define GLOBAL(p) __builtin_assume(__isGlobal(p))
#endif

#define N (1 << LOG_N)
#define THREADS 256  // of kernels that treat every point alone
#define VECTOR 4     // points that a thread of those reads at once

// Constants of one prime, 32 bytes: two vector loads.
struct __align__(16) Prime {
    u32 q;
    u32 q_inv;  // q^-1 mod 2^32
    u32 r2;     // 2^64 mod q
    u32 one_s;  // floor(2^32 / q), the Shoup companion of 1
    u32 w32;    // 2^32 mod q
    u32 w32_s;  // its companion
    u32 q2;  // 2 q: the compiler would form it anew, one instruction each time, where it knows how
    u32 unused;
};

// A constant factor and its Shoup companion floor(w 2^32 / q).
struct __align__(8) Factor {
    u32 w, ws;
};

// Two that stand next to each other: one load.
struct __align__(16) Pair {
    Factor a, b;
};

#define KEYS 4  // that a launch of `inner_products` multiplies with

// An evaluation key.
struct Key {
    const u32 *b, *a;  // its halves, in Montgomery form
    const int* rows;   // row `rows[d, k]` belongs to digit d and limb k
    u32 inverse;       // g^-1: X -> X^g follows
};
struct Keys {
    Key each[KEYS];
};

// Words that stand next to each other, at a multiple of their size.
struct Quad {
    u32 at[VECTOR];
};

struct Two {
    u32 at[2];
};

// One access each, by CUDA's own vector types. Left to itself the compiler takes stores apart again.
DEVICE Quad load(const u32* x) {
    const uint4 v = *(const uint4*)x;
    return {{v.x, v.y, v.z, v.w}};
}
DEVICE Two load2(const u32* x) {
    const uint2 v = *(const uint2*)x;
    return {{v.x, v.y}};
}
DEVICE void store(u32* x, Quad v) { __stwb((uint4*)x, uint4{v.at[0], v.at[1], v.at[2], v.at[3]}); }
DEVICE void store(u32* x, Two v) { __stwb((uint2*)x, uint2{v.at[0], v.at[1]}); }
