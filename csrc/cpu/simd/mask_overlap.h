#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// Pixels at a time: so much of a mask and of a response stay in the first-level cache, and no float sum has more terms
// than kTile / 32 in a row; the sums of tiles are added in double.
constexpr int64_t kTile = 2048;

// One map in one mask, so far.
template <class T>
struct Overlap {
    double inter, hard;
    T peak;
    int64_t argmax;
};

CPGR_DECLARE_SIMD(
    // Of `pixels` pixels from `first` on, at most kTile: map k at responses + k * stride, mask n at masks + n * stride.
    // Adds to overlaps[n * maps + k] and to sizes[n].
    template <class T, class M>
    void add_tile(const T* responses, int64_t maps, const M* masks, int64_t count, int64_t stride, int64_t first,
                  int64_t pixels, T threshold, Overlap<T>* overlaps, double* sizes);

    template <class T>
    double sum_of(const T* values, int64_t count);

    // Pixels first..last of one map: out = constant + sum over n of weights[n] * mask of n.
    template <class T, class M>
    void weigh_masks(const T* weights, const M* masks, int64_t count, int64_t stride, int64_t first, int64_t last,
                     T constant, T* out);

    // One mask: out = constant + sum over k of weights[k] * response k + of above[k] where response k is above the
    // threshold. Either array may be null.
    template <class T>
    void weigh_responses(const T* weights, const T* above, int64_t weight_stride, const T* responses, int64_t maps,
                         int64_t pixels, T threshold, T constant, T* out);)

}  // namespace cpgr
