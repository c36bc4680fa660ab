// How much of each response map lies in each mask. Contiguous arrays; outputs are written whole.
#pragma once

#include <cstdint>

namespace cpgr {

// responses [batch, maps, pixels], masks [batch, count, pixels]: a number a pixel, or a byte (0: outside).
struct OverlapSizes {
    int64_t batch, maps, count, pixels;
};

// inter, hard, peak and argmax [batch, maps, count], response [batch, maps], mask [batch, count]. pixels > 0.
template <class T, class M>
void mask_overlap(const T* responses, const M* masks, OverlapSizes sizes, T threshold, T* inter, T* response, T* mask,
                  T* hard, T* peak, int64_t* argmax, int threads);

// The gradient of the responses; null gradients are zero.
template <class T, class M>
void mask_overlap_backward(const T* grad_inter, const T* grad_response, const T* grad_peak, const M* masks,
                           const int64_t* argmax, OverlapSizes sizes, T* grad_responses, int threads);

// The gradient of masks of numbers.
template <class T>
void mask_overlap_backward_masks(const T* grad_inter, const T* grad_mask, const T* grad_hard, const T* grad_peak,
                                 const T* responses, const int64_t* argmax, OverlapSizes sizes, T threshold,
                                 T* grad_masks, int threads);

}  // namespace cpgr
