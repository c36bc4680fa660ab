// Enough of CUDA to run a kernel's source on the CPU, one block of threads at a time: each thread is a context of its
// own, which goes on until it waits for its warp or its block. They run in a shuffled order, and some warps get ahead of
// others, so that a kernel that forgets to wait gives other results sooner or later.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

using std::fmax;
using std::fmin;

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

namespace on_cpu {

enum class State { running, at_warp, at_block, done };

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    State state;
};

inline ucontext_t scheduler;
inline std::vector<Thread> threads;
inline std::vector<uint64_t> values;  // what each thread hands to the others
inline unsigned current;
inline const std::function<void()>* body;
inline std::mt19937 shuffle{1};

inline void wait(State state) {
    threads[current].state = state;
    swapcontext(&threads[current].context, &scheduler);
}

inline void start() {
    (*body)();
    threads[current].state = State::done;
}

inline unsigned warps() { return (static_cast<unsigned>(threads.size()) + 31) / 32; }

// Lets go on who waits for the same thing as all others of its warp or block that are not done.
inline bool release(unsigned begin, unsigned end, State state) {
    unsigned waiting = 0, alive = 0;
    for (unsigned i = begin; i < end; ++i) {
        waiting += threads[i].state == state;
        alive += threads[i].state != State::done;
    }
    if (waiting == 0 || waiting != alive) return false;
    for (unsigned i = begin; i < end; ++i)
        if (threads[i].state == state) threads[i].state = State::running;
    return true;
}

inline void run_block(unsigned size) {
    if (threads.size() != size) {
        threads.resize(size);
        values.resize(size);
    }
    std::vector<unsigned> order(size);
    for (unsigned i = 0; i < size; ++i) {
        Thread& thread = threads[i];
        order[i] = i;
        thread.stack.resize(1 << 15);
        thread.state = State::running;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = &scheduler;
        makecontext(&thread.context, start, 0);
    }
    while (true) {
        std::shuffle(order.begin(), order.end(), shuffle);
        const uint32_t behind = shuffle();
        bool ran = false, passed = false;
        for (const unsigned i : order) {
            if (threads[i].state != State::running) continue;
            if (behind >> i / 32 & 1) {
                passed = true;
                continue;
            }
            ran = true;
            current = i;
            threadIdx.x = i;
            swapcontext(&scheduler, &threads[i].context);
        }
        bool released = release(0, size, State::at_block);
        for (unsigned warp = 0; warp < warps(); ++warp)
            released |= release(32 * warp, std::min(32 * warp + 32, size), State::at_warp);
        if (ran || passed || released) continue;
        for (const Thread& thread : threads)
            if (thread.state != State::done) throw std::runtime_error("threads wait for each other for ever");
        return;
    }
}

template <class Kernel>
void launch(dim3 grid, unsigned block, const Kernel& kernel) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || block == 0 || block > 1024)
        throw std::runtime_error("invalid launch");
    const std::function<void()> call = kernel;
    body = &call;
    gridDim = grid;
    blockDim = dim3(block);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(block);
            }
}

// Every thread of the warp, or block, gives a value and sees all of them.
template <class Fold>
uint64_t exchange(uint64_t value, State state, const Fold& fold) {
    values[current] = value;
    wait(state);
    const unsigned size = static_cast<unsigned>(threads.size());
    const unsigned begin = state == State::at_warp ? current / 32 * 32 : 0;
    const unsigned end = state == State::at_warp ? std::min(begin + 32, size) : size;
    uint64_t result = 0;
    for (unsigned i = begin; i < end; ++i) result = fold(result, values[i], i - begin);
    wait(state);
    return result;
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::wait(on_cpu::State::at_block); }
inline void __syncwarp(unsigned = ~0u) { on_cpu::wait(on_cpu::State::at_warp); }

inline int __syncthreads_count(bool value) {
    return static_cast<int>(on_cpu::exchange(value, on_cpu::State::at_block,
                                             [](uint64_t sum, uint64_t one, unsigned) { return sum + one; }));
}

inline unsigned __ballot_sync(unsigned, bool value) {
    return static_cast<unsigned>(on_cpu::exchange(
        value, on_cpu::State::at_warp, [](uint64_t bits, uint64_t one, unsigned lane) { return bits | one << lane; }));
}

inline unsigned __reduce_or_sync(unsigned, unsigned value) {
    return static_cast<unsigned>(on_cpu::exchange(
        value, on_cpu::State::at_warp, [](uint64_t bits, uint64_t one, unsigned) { return bits | one; }));
}

inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }
inline int __ffsll(long long word) { return __builtin_ffsll(word); }

inline unsigned long long atomicOr(unsigned long long* address, unsigned long long value) {
    const unsigned long long before = *address;
    *address |= value;
    return before;
}
