#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// Boxes as columns. Each column is aligned to 64 bytes and has kSlack entries more than there are boxes, which whole
// registers may read and write.
template <class T>
struct Columns {
    static constexpr int64_t kSlack = 64;
    T *x1, *y1, *x2, *y2, *area;
};

// One class's boxes, best first, and room to work.
template <class T>
struct Suppression {
    Columns<T> boxes;   // used up
    int32_t* places;    // a number of the caller's for each box, as long as a column
    int64_t count;
    T threshold;
    int64_t most;       // how many may stay
    Columns<T> binned;  // room for `count` boxes
    int32_t* positions;  // room for `count`
    int32_t* starts;    // room for count / 2 + 1
    uint64_t* fallen;   // room for a bit a box, in whole words
};

CPGR_DECLARE_SIMD(
    // Greedy suppression: writes the places of the boxes that stay to `keep`, best first, and returns how many.
    // A box falls when its IoU with an earlier one that stays is above the threshold.
    template <class T>
    int64_t suppress(const Suppression<T>& problem, int32_t* keep);)

}  // namespace cpgr
