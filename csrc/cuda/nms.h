// Non-maximum suppression on the GPU: asynchronous, contiguous device arrays, no word to the host.
#pragma once

#include "launch.h"

namespace cpgr::cuda {

// The images of boxes [batch, count, 4]. `idxs` [batch, count] or null: boxes of different idxs never suppress each
// other. The first `most` indices that stay go to `indices` [batch, most], then -1, and their number to `kept` [batch].
template <class T>
struct NmsImages {
    const T* boxes;
    const int64_t* idxs;
    int64_t batch, count;
    double iou_threshold;
    int64_t most;
    int64_t* indices;
    int64_t* kept;
};

// Boxes an image that `nms_small` takes.
constexpr int64_t kNmsSmall = 1024;

// One launch, one block of threads an image, which sorts too. Of image b the first counts[b] boxes take part (null:
// all), of these the ones whose score is above `score_threshold` (null: all).
void nms_small(const NmsImages<float>& images, const float* scores, const int64_t* counts,
               const double* score_threshold, Place place);

// 64-bit words of scratch an image.
int64_t nms_words(int64_t count);

// Any number of boxes, sorted before: `order` [batch, count] has each image's indices by descending score, of which the
// first real[b] take part (null: all). `scratch` has room for `at_once` images.
template <class T>
void nms_large(const NmsImages<T>& images, const int64_t* order, const int64_t* real, uint64_t* scratch,
               int64_t at_once, Place place);

}  // namespace cpgr::cuda
