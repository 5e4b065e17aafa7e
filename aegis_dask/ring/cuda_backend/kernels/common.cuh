// Words, per-prime constants and the macros that kernels are written with.
//
// A kernel is `KERNEL(name, threads)(arguments) { .. }`, or `PHASED(name, threads)` if its threads
// meet at a `BARRIER`. The same text is compiled by NVRTC and, for tests without a GPU, by a host
// compiler with `emulation.h`, which is why `__syncthreads` and `__shared__` are not written out.
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
#define DEVICE static __device__ __forceinline__
#define SHARED(type, name, count) __shared__ type name[count]
#define UNROLL _Pragma("unroll")
#endif

#define N (1 << LOG_N)
#define THREADS 256  // of kernels that treat every point alone

// Constants of one prime, 32 bytes: two vector loads.
struct __align__(16) Prime {
    u32 q;
    u32 q_inv;  // q^-1 mod 2^32
    u32 r2;     // 2^64 mod q
    u32 one_s;  // floor(2^32 / q), the Shoup companion of 1
    u32 w32;    // 2^32 mod q
    u32 w32_s;  // its companion
    u32 n_inv;  // N^-1 mod q
    u32 n_inv_s;
};

// A constant factor and its Shoup companion floor(w 2^32 / q).
struct __align__(8) Factor {
    u32 w, ws;
};
