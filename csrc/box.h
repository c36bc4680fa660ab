// The arithmetic of one pair of boxes, shared by the CPU and the CUDA kernels.
//
// Internal linkage on purpose: on the CPU these functions are compiled once per instruction set, and the linker must
// not pick an AVX-512 copy for a CPU without it. No product may be fused with an addition (-ffp-contract=off,
// --fmad=false), else results differ between machines and from the plain-torch definition.
#pragma once

#ifdef __CUDACC__
#define CPGR_INLINE static __host__ __device__ __forceinline__
#else
#define CPGR_INLINE static inline
#endif

namespace cpgr {

template <class T>
struct Box {
    T x1, y1, x2, y2;
};

template <class T>
CPGR_INLINE T larger(T a, T b) {
    return a > b ? a : b;
}

template <class T>
CPGR_INLINE T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
CPGR_INLINE T area_of(Box<T> box) {
    return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// A NaN coordinate makes the area NaN and with it the IoU, whatever `larger` and `smaller` do with it.
template <class T>
CPGR_INLINE T iou_of(Box<T> a, T area_a, Box<T> b, T area_b) {
    const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0));
    const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
    const T inter = width * height;
    return inter / (area_a + area_b - inter);
}

// The gradients of iou_of, times `grad`. Where two edges tie each box takes half, and an intersection of width zero
// still passes its gradient, as torch.maximum and clamp do.
template <class T>
CPGR_INLINE void iou_gradient(Box<T> a, Box<T> b, T grad, Box<T>& grad_a, Box<T>& grad_b) {
    const T raw_width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
    const T raw_height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
    const T width = larger(raw_width, T(0)), height = larger(raw_height, T(0));
    const T inter = width * height;
    const T joint = area_of(a) + area_of(b) - inter;
    const T grad_area = -(grad * (inter / joint) / joint);
    const T grad_inter = grad / joint - grad_area;
    const T grad_width = raw_width >= T(0) ? grad_inter * height : T(0);
    const T grad_height = raw_height >= T(0) ? grad_inter * width : T(0);

    // The share of `a` in an edge that `a` wins, ties or loses.
    const T left = a.x1 > b.x1 ? T(1) : a.x1 == b.x1 ? T(0.5) : T(0);
    const T top = a.y1 > b.y1 ? T(1) : a.y1 == b.y1 ? T(0.5) : T(0);
    const T right = a.x2 < b.x2 ? T(1) : a.x2 == b.x2 ? T(0.5) : T(0);
    const T bottom = a.y2 < b.y2 ? T(1) : a.y2 == b.y2 ? T(0.5) : T(0);

    const T across_a = grad_area * (a.y2 - a.y1), down_a = grad_area * (a.x2 - a.x1);
    const T across_b = grad_area * (b.y2 - b.y1), down_b = grad_area * (b.x2 - b.x1);
    grad_a.x1 = -across_a - grad_width * left;
    grad_a.y1 = -down_a - grad_height * top;
    grad_a.x2 = across_a + grad_width * right;
    grad_a.y2 = down_a + grad_height * bottom;
    grad_b.x1 = -across_b - grad_width * (T(1) - left);
    grad_b.y1 = -down_b - grad_height * (T(1) - top);
    grad_b.x2 = across_b + grad_width * (T(1) - right);
    grad_b.y2 = down_b + grad_height * (T(1) - bottom);
}

}  // namespace cpgr
