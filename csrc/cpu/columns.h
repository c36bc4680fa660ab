// Boxes by coordinate, as the vector loops read them.
#pragma once

#include <cstdint>

namespace cpgr {

// Columns x1, y1, x2, y2, area of boxes [count, 4], each `stride` elements after the last.
template <class T>
void to_columns(const T* boxes, int64_t count, T* columns, int64_t stride) {
    T *x1 = columns, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *area = y2 + stride;
    for (int64_t j = 0; j < count; ++j) {
        x1[j] = boxes[4 * j];
        y1[j] = boxes[4 * j + 1];
        x2[j] = boxes[4 * j + 2];
        y2[j] = boxes[4 * j + 3];
        area[j] = (x2[j] - x1[j]) * (y2[j] - y1[j]);
    }
}

}  // namespace cpgr
