#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// Columns and `iou2` are filled up to a multiple of this with entries that never are anybody's best.
constexpr int64_t kMatchPadding = 16;

CPGR_DECLARE_SIMD(
    // Rows begin..end of boxes [*, 4] against the `count` boxes of `columns` (see box_iou.h; `count` padded). A pair
    // whose IoU is above both entries so far, iou1[i] and iou2[j], or one of them, becomes that entry with its index:
    // ascending order makes ties keep the lowest.
    template <class T>
    void match_rows(const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride, int64_t count,
                    T* iou1, int64_t* index1, T* iou2, int64_t* index2);)

}  // namespace cpgr
