// How masks lie in memory once packed, for the CPU and the CUDA kernels.
//
// A mask is a grid of tiles of 8 rows x 64 columns, row by row; a tile is eight 64-bit words, one a row, whose lowest
// bit is the leftmost column. What lies beyond the mask's edges is zero. So a tile is one cache line and one AVX-512
// register, 64 bytes of a dense row become one word, and a rectangle of the mask is a rectangle of tiles: pairs of
// masks are compared only where both have tiles.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CPGR_ANYWHERE __host__ __device__
#else
#define CPGR_ANYWHERE
#endif

namespace cpgr {

constexpr int kTileRows = 8, kTileColumns = 64;

// A mask's size, in pixels and in tiles.
struct PackedGrid {
    int64_t height, width, rows, columns;

    CPGR_ANYWHERE static PackedGrid of(int64_t height, int64_t width) {
        return {height, width, (height + kTileRows - 1) / kTileRows, (width + kTileColumns - 1) / kTileColumns};
    }
    CPGR_ANYWHERE int64_t words() const { return rows * columns * kTileRows; }
};

// The bounding box of a mask's pixels, x2 and y2 exclusive; all zero where the mask is empty.
struct Extent {
    int32_t x1, y1, x2, y2;
};

// Masks of one size: bits [count, words], areas [count], boxes [count].
struct PackedMasks {
    const uint64_t* bits;
    const int64_t* areas;
    const Extent* boxes;
    int64_t count;
};

}  // namespace cpgr
