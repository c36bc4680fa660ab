// Intersection over union of boxes x1, y1, x2, y2. Contiguous arrays; `out` and the gradients are written whole.
#pragma once

#include <cstdint>

namespace cpgr {

// boxes1 [batch, rows, 4] against boxes2 [batch, count, 4]: out [batch, rows, count].
template <class T>
void box_iou(const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out, int threads);

// boxes1 [count, 4] and boxes2 [count, 4], pair by pair: out [count].
template <class T>
void box_iou_pairs(const T* boxes1, const T* boxes2, int64_t count, T* out, int threads);

template <class T>
void box_iou_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count,
                      T* grad1, T* grad2, int threads);

template <class T>
void box_iou_pairs_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1, T* grad2,
                            int threads);

}  // namespace cpgr
