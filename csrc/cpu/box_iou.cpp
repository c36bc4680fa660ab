#include "box_iou.h"

#include <memory>
#include <vector>

#include "parallel.h"
#include "simd/box_iou.h"

namespace cpgr {
namespace {

// Below this many pairs a second thread costs more than it saves.
constexpr int64_t kPairsPerThread = 1 << 15;

int64_t grain(int64_t pairs_each) { return kPairsPerThread / std::max<int64_t>(pairs_each, 1) + 1; }

template <class T>
void to_columns(const T* boxes, int64_t count, T* columns) {
    T *x1 = columns, *y1 = x1 + count, *x2 = y1 + count, *y2 = x2 + count, *area = y2 + count;
    for (int64_t j = 0; j < count; ++j) {
        x1[j] = boxes[4 * j];
        y1[j] = boxes[4 * j + 1];
        x2[j] = boxes[4 * j + 2];
        y2[j] = boxes[4 * j + 3];
        area[j] = (x2[j] - x1[j]) * (y2[j] - y1[j]);
    }
}

}  // namespace

template <class T>
void box_iou(const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out, int threads) {
    const auto kernel = CPGR_SIMD(iou_rows<T>);
    const std::unique_ptr<T[]> scratch(new T[batch * count * 5]);
    T* columns = scratch.get();
    for (int64_t b = 0; b < batch; ++b) to_columns(boxes2 + b * count * 4, count, columns + b * count * 5);
    // Rows of all batches in one loop, so that one large image and many small ones both spread over the threads.
    parallel_for(batch * rows, grain(count), threads, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t b = begin / rows, stop = std::min(end, (b + 1) * rows);
            kernel(boxes1, begin, stop, columns + b * count * 5, count, count, out);
            begin = stop;
        }
    });
}

template <class T>
void box_iou_pairs(const T* boxes1, const T* boxes2, int64_t count, T* out, int threads) {
    const auto kernel = CPGR_SIMD(iou_pairs<T>);
    parallel_for(count, kPairsPerThread, threads,
                 [&](int64_t begin, int64_t end) { kernel(boxes1, boxes2, begin, end, out); });
}

template <class T>
void box_iou_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count,
                      T* grad1, T* grad2, int threads) {
    const auto kernel = CPGR_SIMD(iou_rows_backward<T>);
    std::vector<T> scratch(batch * count * 9);
    // One thread an image: every row adds to the gradients of all columns.
    parallel_for(batch, grain(rows * count), threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            T *columns = scratch.data() + b * count * 9, *grad_columns = columns + count * 5;
            to_columns(boxes2 + b * count * 4, count, columns);
            kernel(grad + b * rows * count, boxes1 + b * rows * 4, rows, columns, count, count, grad1 + b * rows * 4,
                   grad_columns);
            T* grad_boxes = grad2 + b * count * 4;
            for (int64_t j = 0; j < count; ++j)
                for (int64_t edge = 0; edge < 4; ++edge) grad_boxes[4 * j + edge] = grad_columns[edge * count + j];
        }
    });
}

template <class T>
void box_iou_pairs_backward(const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1, T* grad2,
                            int threads) {
    const auto kernel = CPGR_SIMD(iou_pairs_backward<T>);
    parallel_for(count, kPairsPerThread, threads,
                 [&](int64_t begin, int64_t end) { kernel(grad, boxes1, boxes2, begin, end, grad1, grad2); });
}

#define CPGR_INSTANTIATE(T)                                                                                        \
    template void box_iou<T>(const T*, const T*, int64_t, int64_t, int64_t, T*, int);                              \
    template void box_iou_pairs<T>(const T*, const T*, int64_t, T*, int);                                          \
    template void box_iou_backward<T>(const T*, const T*, const T*, int64_t, int64_t, int64_t, T*, T*, int);       \
    template void box_iou_pairs_backward<T>(const T*, const T*, const T*, int64_t, T*, T*, int);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr
