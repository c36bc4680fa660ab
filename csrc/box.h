// The arithmetic of one pair of boxes, shared by the CPU and the CUDA kernels.
//
// Internal linkage, and members that are always inlined, on purpose: on the CPU this is compiled once per instruction
// set, and the linker must not pick an AVX-512 copy for a CPU without it. No product may be fused with an addition (-ffp-contract=off,
// --fmad=false), else results differ between machines and from the plain-torch definition.
#pragma once

#ifdef __CUDACC__
#define CPGR_INLINE static __host__ __device__ __forceinline__
#define CPGR_MEMBER __host__ __device__ __forceinline__
#else
#define CPGR_INLINE static inline
#define CPGR_MEMBER __attribute__((always_inline)) inline
#endif

namespace cpgr {

template <class T>
struct Box {
    T x1, y1, x2, y2;
};

// On a GPU by the instruction for it, which ignores NaN; a comparison and a choice would be two.
template <class T>
CPGR_INLINE T larger(T a, T b) {
#ifdef __CUDA_ARCH__
    return fmax(a, b);
#else
    return a > b ? a : b;
#endif
}

template <class T>
CPGR_INLINE T smaller(T a, T b) {
#ifdef __CUDA_ARCH__
    return fmin(a, b);
#else
    return a < b ? a : b;
#endif
}

template <class T>
CPGR_INLINE T area_of(Box<T> box) {
    return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// Two steps that kernels may take another way to the same number (see csrc/cpu/simd/box_iou.cpp).
template <class T>
struct Steps {
    CPGR_MEMBER T minus(T a, T b) const { return a - b; }
    CPGR_MEMBER T positive(T a) const { return larger(a, T(0)); }
};

// A NaN coordinate makes the area NaN and with it the IoU, whatever `larger` and `smaller` do with it.
template <class T, class How = Steps<T>>
CPGR_INLINE T iou_of(Box<T> a, T area_a, Box<T> b, T area_b, How how = {}) {
    const T width = how.positive(how.minus(smaller(a.x2, b.x2), larger(a.x1, b.x1)));
    const T height = how.positive(how.minus(smaller(a.y2, b.y2), larger(a.y1, b.y1)));
    const T inter = width * height;
    return inter / how.minus(area_a + area_b, inter);
}

// A denominator that is kept at or above `floor`; NaN stays NaN, as in torch.clamp.
template <class T>
CPGR_INLINE T at_least(T floor, T value) {
    return value < floor ? floor : value;
}

// IoU less the part of the hull, the smallest box round both, that neither box covers.
template <class T, class How = Steps<T>>
CPGR_INLINE T generalized_iou_of(Box<T> a, T area_a, Box<T> b, T area_b, T floor, How how = {}) {
    const T width = how.positive(how.minus(smaller(a.x2, b.x2), larger(a.x1, b.x1)));
    const T height = how.positive(how.minus(smaller(a.y2, b.y2), larger(a.y1, b.y1)));
    const T inter = width * height;
    const T joint = how.minus(area_a + area_b, inter);
    const T across = how.minus(larger(a.x2, b.x2), smaller(a.x1, b.x1));
    const T down = how.minus(larger(a.y2, b.y2), smaller(a.y1, b.y1));
    const T hull = across * down;
    return how.minus(inter / at_least(floor, joint), how.minus(hull, joint) / at_least(floor, hull));
}

// The gradients of both boxes from those of the intersection, of an area (the union's) and of the hull. Where two
// edges tie each box takes half, and an intersection of width zero still passes its gradient, as torch.maximum and
// clamp do.
template <bool kHull, class T>
CPGR_INLINE void pair_gradient(Box<T> a, Box<T> b, T grad_inter, T grad_area, T grad_hull, Box<T>& grad_a,
                               Box<T>& grad_b) {
    const T raw_width = smaller(a.x2, b.x2) - larger(a.x1, b.x1);
    const T raw_height = smaller(a.y2, b.y2) - larger(a.y1, b.y1);
    const T grad_width = raw_width >= T(0) ? grad_inter * larger(raw_height, T(0)) : T(0);
    const T grad_height = raw_height >= T(0) ? grad_inter * larger(raw_width, T(0)) : T(0);

    // The share of `a` in an edge of the intersection that `a` wins, ties or loses. In the hull's it has the rest.
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
    if (kHull) {
        const T across = grad_hull * (larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T down = grad_hull * (larger(a.x2, b.x2) - smaller(a.x1, b.x1));
        grad_a.x1 -= across * (T(1) - left);
        grad_a.y1 -= down * (T(1) - top);
        grad_a.x2 += across * (T(1) - right);
        grad_a.y2 += down * (T(1) - bottom);
        grad_b.x1 -= across * left;
        grad_b.y1 -= down * top;
        grad_b.x2 += across * right;
        grad_b.y2 += down * bottom;
    }
}

template <class T>
CPGR_INLINE T intersection_of(Box<T> a, Box<T> b) {
    return larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0)) *
           larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
}

// What can be measured of a pair: its value, and the gradients of both boxes times `grad`.
template <class T>
struct Iou {
    using Number = T;

    template <class How = Steps<T>>
    CPGR_MEMBER T value(Box<T> a, T area_a, Box<T> b, T area_b, How how = {}) const {
        return iou_of(a, area_a, b, area_b, how);
    }

    CPGR_MEMBER void gradient(Box<T> a, Box<T> b, T grad, Box<T>& grad_a, Box<T>& grad_b) const {
        const T inter = intersection_of(a, b);
        const T joint = area_of(a) + area_of(b) - inter;
        const T grad_area = -(grad * (inter / joint) / joint);
        pair_gradient<false>(a, b, grad / joint - grad_area, grad_area, T(0), grad_a, grad_b);
    }
};

template <class T>
struct GeneralizedIou {
    using Number = T;
    T floor;  // of both denominators; -infinity for none

    template <class How = Steps<T>>
    CPGR_MEMBER T value(Box<T> a, T area_a, Box<T> b, T area_b, How how = {}) const {
        return generalized_iou_of(a, area_a, b, area_b, floor, how);
    }

    CPGR_MEMBER void gradient(Box<T> a, Box<T> b, T grad, Box<T>& grad_a, Box<T>& grad_b) const {
        const T inter = intersection_of(a, b);
        const T joint = area_of(a) + area_of(b) - inter;
        const T hull = (larger(a.x2, b.x2) - smaller(a.x1, b.x1)) * (larger(a.y2, b.y2) - smaller(a.y1, b.y1));
        const T under = at_least(floor, joint), beneath = at_least(floor, hull);
        // A denominator at its floor is a constant.
        const T by_joint = joint < floor ? T(0) : inter / under / under;
        const T by_hull = hull < floor ? T(-1) / beneath : -(joint / beneath / beneath);
        const T grad_area = grad * (T(1) / beneath - by_joint);
        pair_gradient<true>(a, b, grad / under - grad_area, grad_area, grad * by_hull, grad_a, grad_b);
    }
};

}  // namespace cpgr
