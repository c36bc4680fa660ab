// Intersection over union of boxes x1, y1, x2, y2, plain and generalized. Contiguous arrays; `out` and the gradients
// are written whole. `Measure` is Iou or GeneralizedIou (csrc/box.h) of float or double.
#pragma once

#include <cstdint>

#include "../box.h"

namespace cpgr {

// boxes1 [batch, rows, 4] against boxes2 [batch, count, 4]: out [batch, rows, count]. `fresh`: the memory of `out`
// was never written to.
template <class Measure, class T = typename Measure::Number>
void box_iou(Measure measure, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out,
             bool fresh, int threads);

// boxes1 [count, 4] and boxes2 [count, 4], pair by pair: out [count].
template <class Measure, class T = typename Measure::Number>
void box_iou_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T* out, bool fresh, int threads);

template <class Measure, class T = typename Measure::Number>
void box_iou_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows,
                      int64_t count, T* grad1, T* grad2, int threads);

template <class Measure, class T = typename Measure::Number>
void box_iou_pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1,
                            T* grad2, int threads);

}  // namespace cpgr
