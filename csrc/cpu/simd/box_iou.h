#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// Boxes as columns x1, y1, x2, y2, area, each `stride` elements after the last: a vector register then holds the
// same coordinate of neighbouring boxes.
CPGR_DECLARE_SIMD(
    // Rows begin..end of the IoU matrix of boxes [*, 4] against the `count` boxes of `columns`.
    template <class T>
    void iou_rows(const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride, int64_t count,
                  T* out);

    // out[k] = IoU of boxes1[k] and boxes2[k], k in begin..end.
    template <class T>
    void iou_pairs(const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* out);

    // Gradients of a [rows, count] IoU matrix: those of `boxes` are written, those of `columns` added to the four
    // columns of `grad_columns`.
    template <class T>
    void iou_rows_backward(const T* grad, const T* boxes, int64_t rows, const T* columns, int64_t stride,
                           int64_t count, T* grad_boxes, T* grad_columns);

    template <class T>
    void iou_pairs_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* grad1,
                            T* grad2);)

}  // namespace cpgr
