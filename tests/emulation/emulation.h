// CUDA's grid, threads, shared memory and barriers for a host compiler (C++20).
//
// A kernel with barriers is a coroutine that suspends at each: all threads of a block run to the
// first barrier, one after another in an order that changes with every phase, then to the next; past
// barriers of warps, some warps run ahead of others. What depends on the order of threads between two
// barriers, a race on a GPU, gives wrong results here. Shared memory is filled with noise before every
// block.
#pragma once
#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <tuple>
#include <utility>
#include <vector>

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, gridDim;

namespace emulation {

struct Thread {
    struct promise_type {
        Thread get_return_object() {
            return {std::coroutine_handle<promise_type>::from_promise(*this)};
        }
        std::suspend_always initial_suspend() noexcept { return {}; }
        std::suspend_always final_suspend() noexcept { return {}; }
        void return_void() {}
        void unhandled_exception() { std::terminate(); }
        bool at_warp_barrier = false;
    };
    std::coroutine_handle<promise_type> handle;
};

template <bool OF_WARP> struct Barrier {
    bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<Thread::promise_type> thread) noexcept {
        thread.promise().at_warp_barrier = OF_WARP;
    }
    void await_resume() noexcept {}
};

enum class Warp { ready, at_barrier, ended };
constexpr unsigned WARP = 32;

// Static shared arrays of a block are limited to 48 KiB.
static std::vector<unsigned char> memory(48 << 10);
static size_t taken;
static uint64_t state;

static uint64_t random_word() {  // splitmix64
    uint64_t z = (state += 0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static void* shared(size_t size) {
    void* out = memory.data() + taken;
    taken += (size + 15) / 16 * 16;
    if (taken > memory.size()) std::abort();
    return out;
}

// Call f(i) for every i below `count` once, in a new order.
template <class F> static void in_some_order(unsigned count, F f) {
    unsigned start = random_word() % count;
    bool backwards = random_word() & 1;
    for (unsigned i = 0; i < count; i++) {
        unsigned t = (start + i) % count;
        f(backwards ? count - 1 - t : t);
    }
}

template <class F> static void for_blocks(const unsigned* grid, F f) {
    gridDim = {grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                f();
            }
}

template <class... A, size_t... I>
static std::tuple<std::decay_t<A>...> unpack(void** arguments, std::index_sequence<I...>) {
    return {*static_cast<std::decay_t<A>*>(arguments[I])...};
}

template <class... A>
static void launch(void (*kernel)(A...), void** arguments, const unsigned* grid, unsigned threads) {
    auto values = unpack<A...>(arguments, std::index_sequence_for<A...>{});
    for_blocks(grid, [&] {
        in_some_order(threads, [&](unsigned t) {
            threadIdx = {t, 0, 0};
            std::apply(kernel, values);
        });
    });
}

// Run the threads of a warp up to their next barrier. Threads that miss one that others wait at would
// hang a GPU.
static Warp advance(std::vector<Thread>& block, unsigned warp, size_t& used) {
    const unsigned first = warp * WARP, count = std::min<unsigned>(WARP, block.size() - first);
    unsigned ended = 0, at_warp_barrier = 0;
    in_some_order(count, [&](unsigned i) {
        auto handle = block[first + i].handle;
        threadIdx = {first + i, 0, 0};
        taken = 0;  // shared arrays are declared before the first barrier
        handle.resume();
        used = std::max(used, taken);
        if (handle.done()) ended++;
        else if (handle.promise().at_warp_barrier) at_warp_barrier++;
    });
    if ((ended && ended != count) || (at_warp_barrier && at_warp_barrier != count)) std::abort();
    return ended ? Warp::ended : at_warp_barrier ? Warp::ready : Warp::at_barrier;
}

template <class... A>
static void launch(Thread (*kernel)(A...), void** arguments, const unsigned* grid,
                   unsigned threads) {
    auto values = unpack<A...>(arguments, std::index_sequence_for<A...>{});
    std::vector<Thread> block(threads);
    std::vector<Warp> warps((threads + WARP - 1) / WARP);
    size_t used = 0, noise = memory.size();  // what blocks use is known after the first
    for_blocks(grid, [&] {
        for (size_t i = 0; i + 8 <= noise; i += 8)
            *reinterpret_cast<uint64_t*>(memory.data() + i) = random_word();
        for (auto& thread : block) thread = std::apply(kernel, values);
        for (bool running = true; running;) {
            std::fill(warps.begin(), warps.end(), Warp::ready);
            for (bool some_ready = true; some_ready;) {
                some_ready = false;
                in_some_order(warps.size(), [&](unsigned w) {
                    if (warps[w] == Warp::ready && random_word() & 1) warps[w] = advance(block, w, used);
                    some_ready |= warps[w] == Warp::ready;
                });
            }
            if (std::count(warps.begin(), warps.end(), warps[0]) != (long)warps.size()) std::abort();
            running = warps[0] != Warp::ended;
        }
        noise = used;
        for (auto& thread : block) thread.handle.destroy();
    });
}

}  // namespace emulation

#define KERNEL(name, threads) static void name
#define PHASED(name, threads) static emulation::Thread name
#define BARRIER co_await emulation::Barrier<false> {}
#define WARP_BARRIER co_await emulation::Barrier<true> {}
#define EXIT co_return
#define INLINE inline
#define DEVICE static INLINE
#define SHARED(type, name, count) \
    type* name = static_cast<type*>(emulation::shared((count) * sizeof(type)))
#define UNROLL
#define GLOBAL(p) (void)(p)
#define __align__(bytes) alignas(bytes)

// May stand for any words, as CUDA's vector types may.
struct __attribute__((may_alias, aligned(16))) uint4 {
    unsigned x, y, z, w;
};
struct __attribute__((may_alias, aligned(8))) uint2 {
    unsigned x, y;
};
template <class T> static inline void __stwb(T* to, T value) { *to = value; }

static inline unsigned __umulhi(unsigned x, unsigned y) { return (uint64_t)x * y >> 32; }
static inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0F0F0F0Fu) | (x & 0x0F0F0F0Fu) << 4;
    return __builtin_bswap32(x);
}
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
