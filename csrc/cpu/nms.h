// Non-maximum suppression: torchvision's indices, in descending order of scores.
#pragma once

#include <cstdint>

namespace cpgr {

// boxes [count, 4] and scores [count], contiguous; `idxs` [count] or null: boxes of different idxs never suppress
// each other. Writes the indices of the boxes that stay to `keep` (room for `count`) and returns how many.
template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep);

}  // namespace cpgr
