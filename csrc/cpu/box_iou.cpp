#include "box_iou.h"

#include <memory>
#include <vector>

#include "columns.h"
#include "pages.h"
#include "parallel.h"
#include "simd/box_iou.h"

namespace cpgr {
namespace {

// Below this many pairs a second thread costs more than it saves.
constexpr int64_t kPairsPerThread = 1 << 15;
// Results from here on are larger than the caches that would hold them.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

int64_t grain(int64_t pairs_each) { return kPairsPerThread / std::max<int64_t>(pairs_each, 1) + 1; }

}  // namespace

template <class Measure, class T>
void box_iou(Measure measure, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out,
             bool fresh, int threads) {
    const int64_t bytes = batch * rows * count * static_cast<int64_t>(sizeof(T));
    if (fresh) prefer_large_pages(out, bytes);
    // A page that does not exist yet is zeroed first, which leaves its lines in the cache: no use going past it.
    const bool past_caches = !fresh && bytes >= kStreamBytes;
    const auto kernel = past_caches ? CPGR_SIMD(stream_rows<Measure>) : CPGR_SIMD(measure_rows<Measure>);
    const std::unique_ptr<T[]> scratch(new T[batch * count * 5]);
    T* columns = scratch.get();
    for (int64_t b = 0; b < batch; ++b) to_columns(boxes2 + b * count * 4, count, columns + b * count * 5, count);
    // Rows of all batches in one loop, so that one large image and many small ones both spread over the threads.
    parallel_for(batch * rows, grain(count), threads, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t b = begin / rows, stop = std::min(end, (b + 1) * rows);
            kernel(measure, boxes1, begin, stop, columns + b * count * 5, count, count, out + begin * count, count);
            begin = stop;
        }
    });
}

template <class Measure, class T>
void box_iou_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T* out, bool fresh,
                   int threads) {
    if (fresh) prefer_large_pages(out, count * static_cast<int64_t>(sizeof(T)));
    const auto kernel = CPGR_SIMD(measure_pairs<Measure>);
    parallel_for(count, kPairsPerThread, threads,
                 [&](int64_t begin, int64_t end) { kernel(measure, boxes1, boxes2, begin, end, out); });
}

template <class Measure, class T>
void box_iou_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows,
                      int64_t count, T* grad1, T* grad2, int threads) {
    const auto kernel = CPGR_SIMD(rows_backward<Measure>);
    std::vector<T> scratch(batch * count * 9);
    // One thread an image: every row adds to the gradients of all columns.
    parallel_for(batch, grain(rows * count), threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            T *columns = scratch.data() + b * count * 9, *grad_columns = columns + count * 5;
            to_columns(boxes2 + b * count * 4, count, columns, count);
            kernel(measure, grad + b * rows * count, boxes1 + b * rows * 4, rows, columns, count, count,
                   grad1 + b * rows * 4, grad_columns);
            T* grad_boxes = grad2 + b * count * 4;
            for (int64_t j = 0; j < count; ++j)
                for (int64_t edge = 0; edge < 4; ++edge) grad_boxes[4 * j + edge] = grad_columns[edge * count + j];
        }
    });
}

template <class Measure, class T>
void box_iou_pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1,
                            T* grad2, int threads) {
    const auto kernel = CPGR_SIMD(pairs_backward<Measure>);
    parallel_for(count, kPairsPerThread, threads,
                 [&](int64_t begin, int64_t end) { kernel(measure, grad, boxes1, boxes2, begin, end, grad1, grad2); });
}

#define CPGR_INSTANTIATE(Measure, T)                                                                                   \
    template void box_iou<Measure, T>(Measure, const T*, const T*, int64_t, int64_t, int64_t, T*, bool, int);          \
    template void box_iou_pairs<Measure, T>(Measure, const T*, const T*, int64_t, T*, bool, int);                      \
    template void box_iou_backward<Measure, T>(Measure, const T*, const T*, const T*, int64_t, int64_t, int64_t, T*,   \
                                               T*, int);                                                               \
    template void box_iou_pairs_backward<Measure, T>(Measure, const T*, const T*, const T*, int64_t, T*, T*, int);
CPGR_INSTANTIATE(Iou<float>, float)
CPGR_INSTANTIATE(Iou<double>, double)
CPGR_INSTANTIATE(GeneralizedIou<float>, float)
CPGR_INSTANTIATE(GeneralizedIou<double>, double)

}  // namespace cpgr
