#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// The boxes still in the running, best first, as six columns. Each column has `kSlack` entries more than there are
// boxes, which whole registers may read and write.
template <class T>
struct Running {
    static constexpr int kSlack = 16;
    T *x1, *y1, *x2, *y2, *area;
    int32_t* place;  // in the order of scores
};

CPGR_DECLARE_SIMD(
    // Greedy suppression: writes the places of the boxes that stay to `keep`, best first, and returns how many.
    // `running` is used up. A box falls when its IoU with an earlier one that stays is above `threshold`.
    template <class T>
    int64_t suppress(Running<T> running, int64_t count, T threshold, int32_t* keep);)

}  // namespace cpgr
