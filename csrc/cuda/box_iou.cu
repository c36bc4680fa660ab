#include "box_iou.h"

#include "box_access.h"

namespace cpgr::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 16;
constexpr int kWarp = 32;

// A thread holds one column's box and walks down a tile of rows; neighbouring threads write neighbouring cells.
template <class Measure, class T>
__global__ void measure_tiles(Measure measure, const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                              int64_t batch, int64_t rows, int64_t count, T* __restrict__ out) {
    const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (column >= count) return;
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t tile = blockIdx.y; tile < batch * tiles; tile += gridDim.y) {
        const int64_t image = tile / tiles, first = tile % tiles * kTileRows;
        const int64_t last = first + kTileRows < rows ? first + kTileRows : rows;
        const Box<T> other = box_at(boxes2, image * count + column);
        const T other_area = area_of(other);
        for (int64_t row = image * rows + first; row < image * rows + last; ++row) {
            const Box<T> box = box_at(boxes1, row);
            out[row * count + column] = measure.value(box, area_of(box), other, other_area);
        }
    }
}

template <class Measure, class T>
__global__ void measure_each(Measure measure, const T* __restrict__ boxes1, const T* __restrict__ boxes2,
                             int64_t count, T* __restrict__ out) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < count; k += stride) {
        const Box<T> a = box_at(boxes1, k), b = box_at(boxes2, k);
        out[k] = measure.value(a, area_of(a), b, area_of(b));
    }
}

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    return value;
}

// One warp sums the gradient of one box over all its partners, in a fixed order. The gradient matrix is read through
// strides, so that the same kernel serves its rows and its columns.
template <class Measure, class T>
__global__ void gradient_rows(Measure measure, const T* __restrict__ grad, int64_t row_stride, int64_t column_stride,
                              const T* __restrict__ boxes, const T* __restrict__ others, int64_t batch, int64_t rows,
                              int64_t count, T* __restrict__ grad_boxes) {
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    for (int64_t row = first; row < batch * rows; row += warps) {
        const int64_t image = row / rows;
        const Box<T> box = box_at(boxes, row);
        const T* cells = grad + image * rows * count + row % rows * row_stride;
        Box<T> sum = {T(0), T(0), T(0), T(0)};
        for (int64_t column = lane; column < count; column += kWarp) {
            Box<T> to_box, to_other;
            measure.gradient(box, box_at(others, image * count + column), cells[column * column_stride], to_box,
                             to_other);
            sum.x1 += to_box.x1;
            sum.y1 += to_box.y1;
            sum.x2 += to_box.x2;
            sum.y2 += to_box.y2;
        }
        sum = {warp_sum(sum.x1), warp_sum(sum.y1), warp_sum(sum.x2), warp_sum(sum.y2)};
        if (lane == 0) put_box(grad_boxes, row, sum);
    }
}

template <class Measure, class T>
__global__ void gradient_each(Measure measure, const T* __restrict__ grad, const T* __restrict__ boxes1,
                              const T* __restrict__ boxes2, int64_t count, T* __restrict__ grad1,
                              T* __restrict__ grad2) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < count; k += stride) {
        Box<T> to_first, to_second;
        measure.gradient(box_at(boxes1, k), box_at(boxes2, k), grad[k], to_first, to_second);
        put_box(grad1, k, to_first);
        put_box(grad2, k, to_second);
    }
}

}  // namespace

template <class Measure, class T>
void box_iou(Measure measure, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* out, Place place) {
    if (batch * rows * count == 0) return;
    const cudaStream_t stream = enter(place, "box_iou");
    const dim3 grid(static_cast<unsigned>(ceil_div(count, kThreads)), grid_size(batch * ceil_div(rows, kTileRows)));
    measure_tiles<<<grid, kThreads, 0, stream>>>(measure, boxes1, boxes2, batch, rows, count, out);
    check(cudaGetLastError(), "box_iou");
}

template <class Measure, class T>
void box_iou_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t count, T* out, Place place) {
    if (count == 0) return;
    const cudaStream_t stream = enter(place, "box_iou");
    measure_each<<<grid_size(ceil_div(count, kThreads)), kThreads, 0, stream>>>(measure, boxes1, boxes2, count, out);
    check(cudaGetLastError(), "box_iou");
}

template <class Measure, class T>
void box_iou_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count,
                      T* grad1, T* grad2, Place place) {
    const cudaStream_t stream = enter(place, "box_iou_backward");
    const auto launch = [&](int64_t row_stride, int64_t column_stride, const T* boxes, const T* others, int64_t own,
                            int64_t partners, T* out) {
        if (batch * own == 0) return;
        const unsigned grid = grid_size(ceil_div(batch * own, kThreads / kWarp));
        gradient_rows<<<grid, kThreads, 0, stream>>>(measure, grad, row_stride, column_stride, boxes, others, batch,
                                                     own, partners, out);
        check(cudaGetLastError(), "box_iou_backward");
    };
    launch(count, 1, boxes1, boxes2, rows, count, grad1);
    launch(1, count, boxes2, boxes1, count, rows, grad2);
}

template <class Measure, class T>
void box_iou_pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t count, T* grad1, T* grad2,
                            Place place) {
    if (count == 0) return;
    const cudaStream_t stream = enter(place, "box_iou_backward");
    gradient_each<<<grid_size(ceil_div(count, kThreads)), kThreads, 0, stream>>>(measure, grad, boxes1, boxes2, count,
                                                                                 grad1, grad2);
    check(cudaGetLastError(), "box_iou_backward");
}

#define CPGR_INSTANTIATE(Measure, T)                                                                                 \
    template void box_iou<Measure, T>(Measure, const T*, const T*, int64_t, int64_t, int64_t, T*, Place);            \
    template void box_iou_pairs<Measure, T>(Measure, const T*, const T*, int64_t, T*, Place);                        \
    template void box_iou_backward<Measure, T>(Measure, const T*, const T*, const T*, int64_t, int64_t, int64_t, T*, \
                                               T*, Place);                                                           \
    template void box_iou_pairs_backward<Measure, T>(Measure, const T*, const T*, const T*, int64_t, T*, T*, Place);
CPGR_INSTANTIATE(Iou<float>, float)
CPGR_INSTANTIATE(Iou<double>, double)
CPGR_INSTANTIATE(GeneralizedIou<float>, float)
CPGR_INSTANTIATE(GeneralizedIou<double>, double)

}  // namespace cpgr::cuda
