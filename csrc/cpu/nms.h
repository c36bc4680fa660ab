// Non-maximum suppression: torchvision's indices, in descending order of scores.
#pragma once

#include <cstdint>

namespace cpgr {

// boxes [count, 4] and scores [count], contiguous; `idxs` [count] or null: boxes of different idxs never suppress
// each other. Writes the indices of the boxes that stay to `keep` (room for `count`) and returns how many.
template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep);

// The same for every image of boxes [batch, count, 4]. Of image b the first counts[b] boxes take part (null: all), of
// these the ones whose score is above `score_threshold` (null: all). Writes the first `most` indices that stay to
// `indices` [batch, most], then -1, and their number to `kept` [batch].
template <class T, class S>
void nms_padded(const T* boxes, const S* scores, const int64_t* idxs, const int64_t* counts, int64_t batch,
                int64_t count, double iou_threshold, const double* score_threshold, int64_t most, int64_t* indices,
                int64_t* kept, int threads);

}  // namespace cpgr
