#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// The rectangle of tiles that a mask's pixels lie in; bottom and right exclusive.
struct Tiles {
    int32_t top, left, bottom, right;
};

// A set of packed masks: bits [count, stride], tiles [count].
struct Packed {
    const uint64_t* bits;
    const Tiles* tiles;
    int64_t count, stride;
};

constexpr int kMaskBlock = 128;

CPGR_DECLARE_SIMD(
    // Adds to inter[i * kMaskBlock + j] the pixels that masks i of `a` and j of `b`, at most kMaskBlock each, share.
    // `rows` x `columns` tiles a mask.
    void intersect_masks(Packed a, Packed b, int32_t rows, int32_t columns, int64_t* inter);

    // The pixels that two masks share.
    int64_t intersect_pair(const uint64_t* a, Tiles tiles_a, const uint64_t* b, Tiles tiles_b, int32_t columns);)

}  // namespace cpgr
