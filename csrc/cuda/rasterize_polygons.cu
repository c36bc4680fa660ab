// A block of threads fills a strip of 32 columns of one instance, a bit a pixel in shared memory: a warp takes an edge
// and a lane a column, flips the bit where the edge passes it, and each row takes over the one above by exclusive or.
#include "rasterize_polygons.h"

#include "../rasterize_polygons.h"

namespace cpgr::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRowsEach = 4;
constexpr int kRows = kThreads * kRowsEach;  // a taller image is filled in several tiles
constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ __forceinline__ GridPoint grid_point(const T* __restrict__ points, int64_t i) {
    return to_grid(static_cast<double>(points[2 * i]), static_cast<double>(points[2 * i + 1]));
}

template <class T>
__device__ bool all_within_limit(const T* __restrict__ points, int64_t length) {
    bool sound = true;
    for (int64_t i = threadIdx.x; i < 2 * length; i += kThreads)
        sound = sound && within_limit(static_cast<double>(points[i]));
    return __syncthreads_and(sound);
}

// Flips the bits of one polygon's outline; rows above the tile count in its first. True if this thread flipped one.
template <class T>
__device__ bool flip_outline(const T* __restrict__ points, int64_t length, int32_t column, int32_t width, int32_t top,
                             int32_t bottom, uint32_t* flips) {
    const int lane = threadIdx.x % kWarp;
    bool flipped = false;
    for (int64_t i = threadIdx.x / kWarp; i < length; i += kWarps) {
        const PolygonEdge edge = edge_between(grid_point(points, i ? i - 1 : length - 1), grid_point(points, i));
        if (column < edge.first || column > edge.last || column >= width) continue;
        const int32_t row = edge.steep ? steep_row(edge, column) : gentle_row(edge, column);
        if (row >= bottom) continue;
        atomicXor(flips + (row > top ? row - top : 0), 1u << lane);
        flipped = true;
    }
    return flipped;
}

// Adds what the flips enclose to `inside` and sets them back to zero.
__device__ void fill_down(uint32_t* flips, uint32_t* inside) {
    __shared__ uint32_t totals[kWarps];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t state[kRowsEach], running = 0;
    for (int r = 0; r < kRowsEach; ++r) {
        running ^= flips[threadIdx.x * kRowsEach + r];
        state[r] = running;
        flips[threadIdx.x * kRowsEach + r] = 0;
    }
    uint32_t scan = running;
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const uint32_t above = __shfl_up_sync(kAll, scan, offset);
        if (lane >= offset) scan ^= above;
    }
    if (lane == kWarp - 1) totals[warp] = scan;
    __syncthreads();
    uint32_t before = scan ^ running;
    for (int w = 0; w < warp; ++w) before ^= totals[w];
    for (int r = 0; r < kRowsEach; ++r) inside[threadIdx.x * kRowsEach + r] |= state[r] ^ before;
    __syncthreads();
}

__device__ void write(const uint32_t* inside, int32_t rows, int32_t first, int32_t width, uint8_t* __restrict__ out) {
    if (width % 4 == 0) {  // four pixels at a time, and every row begins at a whole word
        for (int k = threadIdx.x; k < rows * (kWarp / 4); k += kThreads) {
            const int row = k / (kWarp / 4), column = k % (kWarp / 4) * 4;
            if (first + column >= width) continue;
            const uint32_t four = inside[row] >> column & 15;
            auto* to = reinterpret_cast<uint32_t*>(out + static_cast<int64_t>(row) * width + column);
            *to = four * 0x204081u & 0x01010101u;
        }
        return;
    }
    for (int k = threadIdx.x; k < rows * kWarp; k += kThreads) {
        const int row = k / kWarp, column = k % kWarp;
        if (first + column < width) out[static_cast<int64_t>(row) * width + column] = inside[row] >> column & 1;
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
fill(const T* __restrict__ points, int64_t total, const int64_t* __restrict__ starts,
     const int64_t* __restrict__ lengths, const int64_t* __restrict__ members, const int64_t* __restrict__ ends,
     int64_t count, int32_t height, int32_t width, uint8_t* __restrict__ out) {
    __shared__ uint32_t flips[kRows], inside[kRows];
    const int32_t first = static_cast<int32_t>(blockIdx.x) * kWarp, top = static_cast<int32_t>(blockIdx.y) * kRows;
    const int32_t rows = height - top < kRows ? height - top : kRows;
    for (int r = threadIdx.x; r < kRows; r += kThreads) flips[r] = 0;
    for (int64_t instance = blockIdx.z; instance < count; instance += gridDim.z) {
        for (int r = threadIdx.x; r < kRows; r += kThreads) inside[r] = 0;
        __syncthreads();
        for (int64_t m = ends[instance]; m < ends[instance + 1]; ++m) {
            const int64_t start = starts[members[m]], length = lengths[members[m]];
            if (start < 0 || length < 3 || start > total || length > total - start) continue;
            const T* own = points + 2 * start;
            if (!all_within_limit(own, length)) continue;
            const int32_t column = first + static_cast<int32_t>(threadIdx.x % kWarp);
            const bool flipped = flip_outline(own, length, column, width, top, top + rows, flips);
            if (__syncthreads_or(flipped)) fill_down(flips, inside);
        }
        write(inside, rows, first, width, out + (instance * height + top) * width + first);
        __syncthreads();
    }
}

}  // namespace

template <class T>
void rasterize_polygons(const T* points, int64_t total, const int64_t* starts, const int64_t* lengths,
                        const int64_t* members, const int64_t* ends, int64_t count, int64_t height, int64_t width,
                        uint8_t* out, Place place) {
    if (count * height * width == 0) return;
    const cudaStream_t stream = enter(place, "rasterize_polygons");
    const dim3 grid(static_cast<unsigned>(ceil_div(width, kWarp)), static_cast<unsigned>(ceil_div(height, kRows)),
                    grid_size(count));
    fill<T><<<grid, kThreads, 0, stream>>>(points, total, starts, lengths, members, ends, count,
                                           static_cast<int32_t>(height), static_cast<int32_t>(width), out);
    check(cudaGetLastError(), "rasterize_polygons");
}

#define CPGR_INSTANTIATE(T)                                                                                        \
    template void rasterize_polygons<T>(const T*, int64_t, const int64_t*, const int64_t*, const int64_t*,         \
                                        const int64_t*, int64_t, int64_t, int64_t, uint8_t*, Place);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::cuda
