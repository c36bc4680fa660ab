// The functions of csrc/cpu/mask_overlap.h on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "launch.h"

namespace cpgr::cuda {

struct OverlapSizes {
    int64_t batch, maps, count, pixels;
};

template <class T, class M>
void mask_overlap(const T* responses, const M* masks, OverlapSizes sizes, T threshold, T* inter, T* response, T* mask,
                  T* hard, T* peak, int64_t* argmax, Place place);

template <class T, class M>
void mask_overlap_backward(const T* grad_inter, const T* grad_response, const T* grad_peak, const M* masks,
                           const int64_t* argmax, OverlapSizes sizes, T* grad_responses, Place place);

template <class T>
void mask_overlap_backward_masks(const T* grad_inter, const T* grad_mask, const T* grad_hard, const T* grad_peak,
                                 const T* responses, const int64_t* argmax, OverlapSizes sizes, T threshold,
                                 T* grad_masks, Place place);

}  // namespace cpgr::cuda
