// Forward: a block of threads reads one mask once, for up to kMaps responses of its sample. Backward: a thread owns one
// pixel and gathers, so nothing is added atomically and every run gives the same bits.
#include "mask_overlap.h"

#include <cmath>
#include <stdexcept>

namespace cpgr::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kMaps = 4;  // responses that share one reading of a mask
constexpr int kRun = 64;  // terms a thread adds in T before the sum goes to double
constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ __forceinline__ T product(T response, uint8_t inside) {
    return inside ? response : T(0);
}
template <class T>
__device__ __forceinline__ T product(T response, T mask) {
    return response * mask;
}
template <class T>
__device__ __forceinline__ T size_of(uint8_t inside) {
    return inside ? T(1) : T(0);
}
template <class T>
__device__ __forceinline__ T size_of(T mask) {
    return mask;
}

// Greatest value, first pixel among equals; NaN above all.
template <class T>
struct Peak {
    T value;
    int64_t at;

    __device__ __forceinline__ void take(T other, int64_t where) {
        const bool nan = value != value, other_nan = other != other;
        const bool equal = (nan && other_nan) || value == other;
        if (equal ? where < at : other_nan || (!nan && other > value)) {
            value = other;
            at = where;
        }
    }
};

// The sum over the block, in a fixed order; valid in thread 0. `shared` has a place for each warp.
__device__ __forceinline__ double block_sum(double value, double* shared) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kAll, value, offset);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < kWarps; ++warp) value += shared[warp];
    __syncthreads();
    return value;
}

template <class T>
__device__ __forceinline__ Peak<T> block_peak(Peak<T> peak, Peak<T>* shared) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const T value = __shfl_down_sync(kAll, peak.value, offset);
        const int64_t at = __shfl_down_sync(kAll, static_cast<long long>(peak.at), offset);
        peak.take(value, at);
    }
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = peak;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < kWarps; ++warp) peak.take(shared[warp].value, shared[warp].at);
    __syncthreads();
    return peak;
}

// One block a mask and kMaps responses of its sample.
template <class T, class M, int Maps>
__global__ void __launch_bounds__(kThreads, 4)
overlap(const T* __restrict__ responses, const M* __restrict__ masks, OverlapSizes sizes, T threshold,
        T* __restrict__ inter, T* __restrict__ mask, T* __restrict__ hard, T* __restrict__ peak,
        int64_t* __restrict__ argmax) {
    __shared__ double sums[kWarps];
    __shared__ Peak<T> peaks[kWarps];
    const int64_t row = blockIdx.x, sample = row / sizes.count, number = row % sizes.count;
    const int64_t first_map = static_cast<int64_t>(blockIdx.y) * Maps;
    const M* own = masks + row * sizes.pixels;
    const T* first = responses + (sample * sizes.maps + first_map) * sizes.pixels;
    const int maps = static_cast<int>(sizes.maps - first_map < Maps ? sizes.maps - first_map : Maps);

    double inter_sum[Maps] = {}, hard_sum[Maps] = {}, size_sum = 0;
    Peak<T> best[Maps];
    for (int k = 0; k < Maps; ++k) best[k] = {-static_cast<T>(INFINITY), sizes.pixels};
    for (int64_t base = threadIdx.x; base < sizes.pixels; base += kRun * kThreads) {
        T inter_run[Maps] = {}, hard_run[Maps] = {}, size_run = 0;
        const int64_t end = base + kRun * kThreads < sizes.pixels ? base + kRun * kThreads : sizes.pixels;
        for (int64_t pixel = base; pixel < end; pixel += kThreads) {
            const M m = own[pixel];
            const T size = size_of<T>(m);
            size_run += size;
#pragma unroll
            for (int k = 0; k < Maps; ++k) {
                if (k >= maps) continue;
                const T p = first[k * sizes.pixels + pixel], x = product(p, m);
                inter_run[k] += x;
                if (p > threshold) hard_run[k] += size;
                best[k].take(x, pixel);
            }
        }
        size_sum += size_run;
#pragma unroll
        for (int k = 0; k < Maps; ++k) {
            inter_sum[k] += inter_run[k];
            hard_sum[k] += hard_run[k];
        }
    }

    const double whole = block_sum(size_sum, sums);
    if (threadIdx.x == 0 && blockIdx.y == 0) mask[row] = static_cast<T>(whole);
#pragma unroll
    for (int k = 0; k < Maps; ++k) {
        if (k >= maps) continue;
        const double soft_total = block_sum(inter_sum[k], sums), hard_total = block_sum(hard_sum[k], sums);
        const Peak<T> top = block_peak(best[k], peaks);
        if (threadIdx.x != 0) continue;
        const int64_t to = (sample * sizes.maps + first_map + k) * sizes.count + number;
        inter[to] = static_cast<T>(soft_total);
        hard[to] = static_cast<T>(hard_total);
        peak[to] = top.value;
        argmax[to] = top.at;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
sum_rows(const T* __restrict__ values, int64_t pixels, T* __restrict__ out) {
    __shared__ double sums[kWarps];
    const T* own = values + blockIdx.x * pixels;
    double sum = 0;
    for (int64_t pixel = threadIdx.x; pixel < pixels; pixel += kThreads) sum += own[pixel];
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) out[blockIdx.x] = static_cast<T>(sum);
}

// A thread gathers one pixel of one response. Masks that get no gradient are not read.
template <class T, class M>
__global__ void __launch_bounds__(kThreads)
gather_masks(const T* __restrict__ grad_inter, const T* __restrict__ grad_response, const T* __restrict__ grad_peak,
             const M* __restrict__ masks, const int64_t* __restrict__ argmax, OverlapSizes sizes,
             T* __restrict__ grad_responses) {
    __shared__ T weights[kThreads], peaks[kThreads];
    __shared__ int64_t pixels_of_peaks[kThreads];
    const int64_t blocks = (sizes.pixels + kThreads - 1) / kThreads;
    const int64_t row = blockIdx.x / blocks, pixel = blockIdx.x % blocks * kThreads + threadIdx.x;
    const bool inside = pixel < sizes.pixels;
    const M* own = masks + row / sizes.maps * sizes.count * sizes.pixels;
    T sum = grad_response ? grad_response[row] : T(0);
    for (int64_t base = 0; base < sizes.count; base += kThreads) {
        const int filled = static_cast<int>(sizes.count - base < kThreads ? sizes.count - base : kThreads);
        if (static_cast<int>(threadIdx.x) < filled) {
            const int64_t from = row * sizes.count + base + threadIdx.x;
            weights[threadIdx.x] = grad_inter ? grad_inter[from] : T(0);
            peaks[threadIdx.x] = grad_peak ? grad_peak[from] : T(0);
            pixels_of_peaks[threadIdx.x] = grad_peak ? argmax[from] : -1;
        }
        __syncthreads();
        for (int n = 0; inside && n < filled; ++n) {
            const M* mask = own + (base + n) * sizes.pixels + pixel;
            if (weights[n] != T(0)) sum += product(weights[n], *mask);
            if (pixels_of_peaks[n] == pixel) sum += peaks[n] * size_of<T>(*mask);
        }
        __syncthreads();
    }
    if (inside) grad_responses[row * sizes.pixels + pixel] = sum;
}

// A thread gathers one pixel of one mask.
template <class T>
__global__ void __launch_bounds__(kThreads)
gather_responses(const T* __restrict__ grad_inter, const T* __restrict__ grad_mask, const T* __restrict__ grad_hard,
                 const T* __restrict__ grad_peak, const T* __restrict__ responses, const int64_t* __restrict__ argmax,
                 OverlapSizes sizes, T threshold, T* __restrict__ grad_masks) {
    const int64_t blocks = (sizes.pixels + kThreads - 1) / kThreads;
    const int64_t row = blockIdx.x / blocks, pixel = blockIdx.x % blocks * kThreads + threadIdx.x;
    if (pixel >= sizes.pixels) return;
    const int64_t sample = row / sizes.count, number = row % sizes.count;
    T sum = grad_mask ? grad_mask[row] : T(0);
    for (int64_t k = 0; k < sizes.maps; ++k) {
        const int64_t pair = (sample * sizes.maps + k) * sizes.count + number;
        const T p = responses[(sample * sizes.maps + k) * sizes.pixels + pixel];
        if (grad_inter) sum += grad_inter[pair] * p;
        if (grad_hard && p > threshold) sum += grad_hard[pair];
        if (grad_peak && argmax[pair] == pixel) sum += grad_peak[pair] * p;
    }
    grad_masks[row * sizes.pixels + pixel] = sum;
}

unsigned blocks_of(int64_t blocks) {
    if (blocks > 0x7fffffff) throw std::length_error("mask_overlap: too many masks or pixels for one launch");
    return static_cast<unsigned>(blocks);
}

}  // namespace

template <class T, class M>
void mask_overlap(const T* responses, const M* masks, OverlapSizes sizes, T threshold, T* inter, T* response, T* mask,
                  T* hard, T* peak, int64_t* argmax, Place place) {
    const cudaStream_t stream = enter(place, "mask_overlap");
    if (const unsigned rows = blocks_of(sizes.batch * sizes.maps)) {
        sum_rows<T><<<rows, kThreads, 0, stream>>>(responses, sizes.pixels, response);
        check(cudaGetLastError(), "mask_overlap");
    }
    const unsigned rows = blocks_of(sizes.batch * sizes.count);
    if (rows == 0 || sizes.maps == 0) return;
    if (sizes.maps == 1)
        overlap<T, M, 1><<<rows, kThreads, 0, stream>>>(responses, masks, sizes, threshold, inter, mask, hard, peak,
                                                        argmax);
    else
        overlap<T, M, kMaps><<<dim3(rows, grid_size(ceil_div(sizes.maps, kMaps))), kThreads, 0, stream>>>(
            responses, masks, sizes, threshold, inter, mask, hard, peak, argmax);
    check(cudaGetLastError(), "mask_overlap");
}

template <class T, class M>
void mask_overlap_backward(const T* grad_inter, const T* grad_response, const T* grad_peak, const M* masks,
                           const int64_t* argmax, OverlapSizes sizes, T* grad_responses, Place place) {
    const cudaStream_t stream = enter(place, "mask_overlap_backward");
    const unsigned blocks = blocks_of(sizes.batch * sizes.maps * ceil_div(sizes.pixels, kThreads));
    if (blocks == 0) return;
    gather_masks<T, M><<<blocks, kThreads, 0, stream>>>(grad_inter, grad_response, grad_peak, masks, argmax, sizes,
                                                        grad_responses);
    check(cudaGetLastError(), "mask_overlap_backward");
}

template <class T>
void mask_overlap_backward_masks(const T* grad_inter, const T* grad_mask, const T* grad_hard, const T* grad_peak,
                                 const T* responses, const int64_t* argmax, OverlapSizes sizes, T threshold,
                                 T* grad_masks, Place place) {
    const cudaStream_t stream = enter(place, "mask_overlap_backward");
    const unsigned blocks = blocks_of(sizes.batch * sizes.count * ceil_div(sizes.pixels, kThreads));
    if (blocks == 0) return;
    gather_responses<T><<<blocks, kThreads, 0, stream>>>(grad_inter, grad_mask, grad_hard, grad_peak, responses,
                                                         argmax, sizes, threshold, grad_masks);
    check(cudaGetLastError(), "mask_overlap_backward");
}

#define CPGR_INSTANTIATE(T, M)                                                                                      \
    template void mask_overlap<T, M>(const T*, const M*, OverlapSizes, T, T*, T*, T*, T*, T*, int64_t*, Place);     \
    template void mask_overlap_backward<T, M>(const T*, const T*, const T*, const M*, const int64_t*, OverlapSizes, \
                                              T*, Place);
CPGR_INSTANTIATE(float, uint8_t)
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(double, uint8_t)
CPGR_INSTANTIATE(double, double)
#undef CPGR_INSTANTIATE
#define CPGR_INSTANTIATE(T)                                                                                         \
    template void mask_overlap_backward_masks<T>(const T*, const T*, const T*, const T*, const T*, const int64_t*,  \
                                                 OverlapSizes, T, T*, Place);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::cuda
