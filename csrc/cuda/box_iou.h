// The functions of csrc/cpu/box_iou.h on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "../box.h"
#include "launch.h"

namespace cpgr::cuda {

template <class Measure, class T = typename Measure::Number>
void box_iou(Measure measure, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out,
             Place place);

template <class Measure, class T = typename Measure::Number>
void box_iou_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T* out, Place place);

template <class Measure, class T = typename Measure::Number>
void box_iou_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows,
                      int64_t count, T* grad1, T* grad2, Place place);

template <class Measure, class T = typename Measure::Number>
void box_iou_pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1,
                            T* grad2, Place place);

}  // namespace cpgr::cuda
