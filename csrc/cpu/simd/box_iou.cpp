// Plain loops that the compiler turns into the vector code of each level. Boxes go by value and outputs are
// __restrict__: otherwise GCC gives the loops up. No template of the standard library may be used here (see box.h).
#include "box_iou.h"

#include "../../box.h"

namespace cpgr::CPGR_ISA {

template <class T>
static inline Box<T> box_at(const T* boxes, int64_t i) {
    return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

template <class T>
static inline void put_box(T* boxes, int64_t i, const Box<T>& box) {
    boxes[4 * i] = box.x1;
    boxes[4 * i + 1] = box.y1;
    boxes[4 * i + 2] = box.x2;
    boxes[4 * i + 3] = box.y2;
}

template <class T>
void iou_rows(const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride, int64_t count, T* out) {
    const T *x1 = columns, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *area = y2 + stride;
    for (int64_t i = begin; i < end; ++i) {
        const Box<T> box = box_at(boxes, i);
        const T box_area = area_of(box);
        T* __restrict__ row = out + i * count;
        for (int64_t j = 0; j < count; ++j) {
            const Box<T> other = {x1[j], y1[j], x2[j], y2[j]};
            row[j] = iou_of(box, box_area, other, area[j]);
        }
    }
}

template <class T>
void iou_pairs(const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* __restrict__ out) {
    for (int64_t k = begin; k < end; ++k) {
        const Box<T> a = box_at(boxes1, k), b = box_at(boxes2, k);
        out[k] = iou_of(a, area_of(a), b, area_of(b));
    }
}

// The gradients of one box against `count` others, summed in as many running sums as a register holds.
template <class T>
static inline Box<T> row_backward(Box<T> box, const T* __restrict__ grad, const T* __restrict__ columns,
                                  int64_t stride, int64_t count, T* __restrict__ grad_columns) {
    constexpr int64_t lanes = 64 / sizeof(T);
    T sum_x1[lanes] = {}, sum_y1[lanes] = {}, sum_x2[lanes] = {}, sum_y2[lanes] = {};
    for (int64_t first = 0; first < count; first += lanes) {
        const int64_t filled = count - first < lanes ? count - first : lanes;
        const T *x1 = columns + first, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *g = grad + first;
        T *gx1 = grad_columns + first, *gy1 = gx1 + stride, *gx2 = gy1 + stride, *gy2 = gx2 + stride;
        for (int64_t j = 0; j < filled; ++j) {
            Box<T> to_box, to_other;
            iou_gradient(box, Box<T>{x1[j], y1[j], x2[j], y2[j]}, g[j], to_box, to_other);
            sum_x1[j] += to_box.x1;
            sum_y1[j] += to_box.y1;
            sum_x2[j] += to_box.x2;
            sum_y2[j] += to_box.y2;
            gx1[j] += to_other.x1;
            gy1[j] += to_other.y1;
            gx2[j] += to_other.x2;
            gy2[j] += to_other.y2;
        }
    }
    Box<T> sum = {T(0), T(0), T(0), T(0)};
    for (int64_t j = 0; j < lanes; ++j) {
        sum.x1 += sum_x1[j];
        sum.y1 += sum_y1[j];
        sum.x2 += sum_x2[j];
        sum.y2 += sum_y2[j];
    }
    return sum;
}

template <class T>
void iou_rows_backward(const T* grad, const T* boxes, int64_t rows, const T* columns, int64_t stride, int64_t count,
                       T* grad_boxes, T* grad_columns) {
    for (int64_t i = 0; i < rows; ++i)
        put_box(grad_boxes, i, row_backward(box_at(boxes, i), grad + i * count, columns, stride, count, grad_columns));
}

template <class T>
void iou_pairs_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t begin, int64_t end, T* grad1,
                        T* grad2) {
    for (int64_t k = begin; k < end; ++k) {
        Box<T> to_first, to_second;
        iou_gradient(box_at(boxes1, k), box_at(boxes2, k), grad[k], to_first, to_second);
        put_box(grad1, k, to_first);
        put_box(grad2, k, to_second);
    }
}

#define CPGR_INSTANTIATE(T)                                                                                         \
    template void iou_rows<T>(const T*, int64_t, int64_t, const T*, int64_t, int64_t, T*);                          \
    template void iou_pairs<T>(const T*, const T*, int64_t, int64_t, T*);                                           \
    template void iou_rows_backward<T>(const T*, const T*, int64_t, const T*, int64_t, int64_t, T*, T*);            \
    template void iou_pairs_backward<T>(const T*, const T*, const T*, int64_t, int64_t, T*, T*);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::CPGR_ISA
