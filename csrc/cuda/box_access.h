// Boxes in device memory.
#pragma once

#include <cstdint>

#include "../box.h"

namespace cpgr::cuda {

// Scalar loads: a slice of a tensor need not be aligned to a whole box.
template <class T>
__device__ __forceinline__ Box<T> box_at(const T* __restrict__ boxes, int64_t i) {
    return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

template <class T>
__device__ __forceinline__ void put_box(T* boxes, int64_t i, const Box<T>& box) {
    boxes[4 * i] = box.x1;
    boxes[4 * i + 1] = box.y1;
    boxes[4 * i + 2] = box.x2;
    boxes[4 * i + 3] = box.y2;
}

}  // namespace cpgr::cuda
