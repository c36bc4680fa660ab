// Two kernels: all pairs are compared into a bit matrix, then one block of threads walks it from the best box down,
// on the device, so that nothing is copied to the host but the number of boxes that stay.
#include "nms.h"

#include "../box.h"
#include "../rounding.h"

namespace cpgr::cuda {
namespace {

constexpr int kBlock = 64;  // boxes a block: one bit each of a word
constexpr int kWalkers = 1024;

template <class T>
__device__ __forceinline__ Box<T> box_at(const T* __restrict__ boxes, int64_t i) {
    return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

// Bit j of falls[i][w]: box i of the order, if it stays, makes box 64 w + j fall. Only words at or right of the
// diagonal are written, and only those are read.
template <class T>
__global__ void compare(const T* __restrict__ boxes, const int64_t* __restrict__ order,
                        const int64_t* __restrict__ idxs, int64_t count, T threshold, uint64_t* __restrict__ falls) {
    const int64_t words = (count + kBlock - 1) / kBlock;
    const int64_t word = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kBlock;
    if (word < blockIdx.y) return;

    __shared__ Box<T> others[kBlock];
    __shared__ int64_t other_idxs[kBlock];
    const int64_t base = word * kBlock;
    const int size = static_cast<int>(count - base < kBlock ? count - base : kBlock);
    if (static_cast<int>(threadIdx.x) < size) {
        const int64_t other = order[base + threadIdx.x];
        others[threadIdx.x] = box_at(boxes, other);
        other_idxs[threadIdx.x] = idxs ? idxs[other] : 0;
    }
    __syncthreads();

    const int64_t row = first + threadIdx.x;
    if (row >= count) return;
    const int64_t index = order[row];
    const Box<T> box = box_at(boxes, index);
    const T area = area_of(box);
    const int64_t idx = idxs ? idxs[index] : 0;
    uint64_t bits = 0;
    for (int j = word == blockIdx.y ? threadIdx.x + 1 : 0; j < size; ++j)
        if (other_idxs[j] == idx && iou_of(box, area, others[j], area_of(others[j])) > threshold)
            bits |= uint64_t{1} << j;
    falls[row * words + word] = bits;
}

// One block. `fallen` has one bit a box.
__global__ void walk(const uint64_t* __restrict__ falls, const int64_t* __restrict__ order, int64_t count,
                     uint64_t* fallen, int64_t* __restrict__ keep, int64_t* __restrict__ kept) {
    __shared__ uint64_t within[kBlock];
    __shared__ uint64_t staying;
    const int64_t words = (count + kBlock - 1) / kBlock;
    const int thread = threadIdx.x;
    int64_t total = 0;
    for (int64_t word = thread; word < words; word += kWalkers) fallen[word] = 0;

    for (int64_t word = 0; word < words; ++word) {
        const int64_t base = word * kBlock;
        const int size = static_cast<int>(count - base < kBlock ? count - base : kBlock);
        if (thread < size) within[thread] = falls[(base + thread) * words + word];
        __syncthreads();
        if (thread == 0) {
            uint64_t gone = fallen[word], stay = 0;
            for (int i = 0; i < size; ++i)
                if (!(gone >> i & 1)) {
                    stay |= uint64_t{1} << i;
                    gone |= within[i];
                }
            staying = stay;
        }
        __syncthreads();
        const uint64_t stay = staying;
        if (thread < size && (stay >> thread & 1))
            keep[total + __popcll(stay & ((uint64_t{1} << thread) - 1))] = order[base + thread];
        total += __popcll(stay);
        for (int64_t later = word + 1 + thread; later < words; later += kWalkers) {
            uint64_t gone = fallen[later];
            for (uint64_t left = stay; left; left &= left - 1)
                gone |= falls[(base + __ffsll(static_cast<long long>(left)) - 1) * words + later];
            fallen[later] = gone;
        }
        __syncthreads();
    }
    if (thread == 0) *kept = total;
}

}  // namespace

int64_t nms_words(int64_t count) { return (count + 1) * ceil_div(count, kBlock); }

template <class T>
void nms(const T* boxes, const int64_t* order, const int64_t* idxs, int64_t count, double iou_threshold,
         uint64_t* scratch, int64_t* keep, int64_t* kept, Place place) {
    const cudaStream_t stream = enter(place, "nms");
    const int64_t words = ceil_div(count, kBlock);
    if (words > 65535) throw std::length_error("nms: more than 4194240 boxes on a GPU");
    if (words > 0) {
        const dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(words));
        compare<T><<<grid, kBlock, 0, stream>>>(boxes, order, idxs, count, round_down<T>(iou_threshold), scratch);
        check(cudaGetLastError(), "nms");
    }
    walk<<<1, kWalkers, 0, stream>>>(scratch, order, count, scratch + count * words, keep, kept);
    check(cudaGetLastError(), "nms");
}

template void nms<float>(const float*, const int64_t*, const int64_t*, int64_t, double, uint64_t*, int64_t*, int64_t*,
                         Place);
template void nms<double>(const double*, const int64_t*, const int64_t*, int64_t, double, uint64_t*, int64_t*,
                          int64_t*, Place);

}  // namespace cpgr::cuda
