// Non-maximum suppression on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "launch.h"

namespace cpgr::cuda {

// 64-bit words of scratch for `count` boxes.
int64_t nms_words(int64_t count);

// `order` [count]: indices of boxes [count, 4] by descending score. `idxs` [count] or null: boxes of different idxs
// never suppress each other. Writes the indices that stay to `keep` (room for `count`) and their number to `kept`.
template <class T>
void nms(const T* boxes, const int64_t* order, const int64_t* idxs, int64_t count, double iou_threshold,
         uint64_t* scratch, int64_t* keep, int64_t* kept, Place place);

}  // namespace cpgr::cuda
