#pragma once

#include <cstdint>

#include "../../box.h"
#include "../isa.h"

namespace cpgr {

// Boxes as columns x1, y1, x2, y2, area, each `stride` elements after the last: a vector register then holds the
// same coordinate of neighbouring boxes. `Measure` is Iou or GeneralizedIou of float or double.
CPGR_DECLARE_SIMD(
    // Rows begin..end of the matrix of boxes [*, 4] against the `count` boxes of `columns`; row i starts at
    // out + (i - begin) * out_stride.
    template <class Measure, class T = typename Measure::Number>
    void measure_rows(Measure measure, const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride,
                      int64_t count, T* out, int64_t out_stride);

    // The same into memory that is written past the caches. Right where the matrix is larger than they are and its
    // pages exist already: a line then need not be read before it is overwritten.
    template <class Measure, class T = typename Measure::Number>
    void stream_rows(Measure measure, const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride,
                     int64_t count, T* out, int64_t out_stride);

    // out[k] = the measure of boxes1[k] and boxes2[k], k in begin..end.
    template <class Measure, class T = typename Measure::Number>
    void measure_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* out);

    // Gradients of a [rows, count] matrix: those of `boxes` are written, those of `columns` added to the four columns
    // of `grad_columns`.
    template <class Measure, class T = typename Measure::Number>
    void rows_backward(Measure measure, const T* grad, const T* boxes, int64_t rows, const T* columns, int64_t stride,
                       int64_t count, T* grad_boxes, T* grad_columns);

    template <class Measure, class T = typename Measure::Number>
    void pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t begin, int64_t end,
                        T* grad1, T* grad2);)

}  // namespace cpgr
