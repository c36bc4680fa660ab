// One block of threads a mask, so that its area and box need no second kernel and no zeroed memory. A warp makes a
// tile: four lanes a row, sixteen pixels each.
#include "pack_masks.h"

namespace cpgr::cuda {
namespace {

constexpr int kThreads = 512, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kLanes = kWarp / kTileRows, kPixels = kTileColumns / kLanes;  // lanes a row, pixels a lane
constexpr unsigned kAll = 0xffffffffu;

// Bit k: byte k is not zero.
__device__ __forceinline__ uint32_t nibble_of(uint32_t bytes) {
    const uint32_t top = (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) & 0x80808080u;
    return ((top >> 7) * 0x00204081u) >> 21 & 15u;
}

// The first `left` of sixteen pixels as bits. Rows begin at multiples of `alignment` bytes.
__device__ __forceinline__ uint32_t pack_pixels(const uint8_t* from, int64_t left, int alignment) {
    uint32_t bits = 0;
    if (alignment == 16 && left >= kPixels) {
        const uint4 v = __ldcs(reinterpret_cast<const uint4*>(from));
        return nibble_of(v.x) | nibble_of(v.y) << 4 | nibble_of(v.z) << 8 | nibble_of(v.w) << 12;
    }
    if (alignment >= 4) {  // and so is the width a multiple of four
        for (int k = 0; k < kPixels && k < left; k += 4)
            bits |= nibble_of(__ldcs(reinterpret_cast<const unsigned*>(from + k))) << k;
        return bits;
    }
    for (int k = 0; k < kPixels && k < left; ++k) bits |= uint32_t{from[k] != 0} << k;
    return bits;
}

struct Measured {
    unsigned long long area;
    int left, top, right, bottom;
};

__global__ void __launch_bounds__(kThreads)
    pack(const uint8_t* __restrict__ masks, int64_t count, PackedGrid grid, int alignment, uint64_t* __restrict__ bits,
         int64_t* __restrict__ areas, Extent* __restrict__ boxes) {
    __shared__ Measured all;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, r = lane / kLanes, quarter = lane % kLanes;
    const int64_t tiles = grid.rows * grid.columns;
    for (int64_t mask = blockIdx.x; mask < count; mask += gridDim.x) {
        if (threadIdx.x == 0) all = {0, 0x7fffffff, 0x7fffffff, 0, 0};
        __syncthreads();

        const uint8_t* pixels = masks + mask * grid.height * grid.width;
        uint64_t* words = bits + mask * tiles * kTileRows;
        unsigned area = 0;
        int left = 0x7fffffff, top = 0x7fffffff, right = 0, bottom = 0;
#pragma unroll 4
        for (int64_t tile = warp; tile < tiles; tile += kWarps) {
            const int64_t y = tile / grid.columns * kTileRows + r, x = tile % grid.columns * kTileColumns;
            const int64_t column = x + quarter * kPixels;
            const bool there = y < grid.height && column < grid.width;
            uint32_t part = there ? pack_pixels(pixels + y * grid.width + column, grid.width - column, alignment) : 0;
            part <<= quarter % 2 * kPixels;
            part |= __shfl_xor_sync(kAll, part, 1);
            const uint32_t other = __shfl_xor_sync(kAll, part, 2);
            if (quarter != 0) continue;
            const uint64_t word = part | uint64_t{other} << 32;
            words[tile * kTileRows + r] = word;
            if (word == 0) continue;
            area += __popcll(word);
            left = min(left, static_cast<int>(x) + __ffsll(static_cast<long long>(word)) - 1);
            right = max(right, static_cast<int>(x) + kTileColumns - __clzll(static_cast<long long>(word)));
            top = min(top, static_cast<int>(y));
            bottom = max(bottom, static_cast<int>(y) + 1);
        }

        area = __reduce_add_sync(kAll, area);
        left = __reduce_min_sync(kAll, left);
        top = __reduce_min_sync(kAll, top);
        right = __reduce_max_sync(kAll, right);
        bottom = __reduce_max_sync(kAll, bottom);
        if (lane == 0 && area > 0) {
            atomicAdd(&all.area, static_cast<unsigned long long>(area));
            atomicMin(&all.left, left);
            atomicMin(&all.top, top);
            atomicMax(&all.right, right);
            atomicMax(&all.bottom, bottom);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            areas[mask] = static_cast<int64_t>(all.area);
            boxes[mask] = all.area ? Extent{all.left, all.top, all.right, all.bottom} : Extent{0, 0, 0, 0};
        }
    }
}

}  // namespace

void pack_masks(const uint8_t* masks, int64_t count, int64_t height, int64_t width, uint64_t* bits, int64_t* areas,
                Extent* boxes, Place place) {
    if (count == 0) return;
    const cudaStream_t stream = enter(place, "pack_masks");
    const uintptr_t both = reinterpret_cast<uintptr_t>(masks) | static_cast<uintptr_t>(width);
    const int alignment = both % 16 == 0 ? 16 : both % 4 == 0 ? 4 : 1;
    const PackedGrid grid = PackedGrid::of(height, width);
    pack<<<grid_size(count), kThreads, 0, stream>>>(masks, count, grid, alignment, bits, areas, boxes);
    check(cudaGetLastError(), "pack_masks");
}

}  // namespace cpgr::cuda
