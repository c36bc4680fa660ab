// Plain loops that the compiler turns into the vector code of each level. Boxes go by value and outputs are
// __restrict__: otherwise GCC gives the loops up. No template of the standard library may be used here (see box.h).
#include "box_iou.h"

#ifdef CPGR_X86
#include <immintrin.h>
#endif

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

#ifdef __FMA__
static inline __attribute__((always_inline)) float fma_of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline __attribute__((always_inline)) double fma_of(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

// a * 1 - b is a - b to the bit, but runs on the multipliers, while the adders are busy with minima and maxima. The
// compiler must not see that `one` is 1, nor that `zero` is 0: it would make a comparison and a masked move of the
// maximum. Together a quarter of the time.
template <class T>
struct FusedSteps {
    T one, zero;
    CPGR_MEMBER T minus(T a, T b) const { return fma_of(a, one, -b); }
    CPGR_MEMBER T positive(T a) const { return larger(a, zero); }
};

template <class T>
static inline FusedSteps<T> fastest() {
    const volatile T one = T(1), zero = T(0);
    return {one, zero};
}
#else
template <class T>
static inline Steps<T> fastest() {
    return {};
}
#endif

// Four rows at a time: a column is loaded once for all of them, and four streams of stores hide more of the memory's
// delay than one. Not inlined: GCC believes in __restrict__ of parameters alone.
template <class Measure, class T, class How>
static __attribute__((noinline)) void four_rows(Measure measure, How how, const T* boxes, const T* columns,
                                                int64_t stride, int64_t count, T* __restrict__ row_a,
                                                T* __restrict__ row_b, T* __restrict__ row_c, T* __restrict__ row_d) {
    const T *x1 = columns, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *area = y2 + stride;
    const Box<T> a = box_at(boxes, 0), b = box_at(boxes, 1), c = box_at(boxes, 2), d = box_at(boxes, 3);
    const T area_a = area_of(a), area_b = area_of(b), area_c = area_of(c), area_d = area_of(d);
    for (int64_t j = 0; j < count; ++j) {
        const Box<T> other = {x1[j], y1[j], x2[j], y2[j]};
        row_a[j] = measure.value(a, area_a, other, area[j], how);
        row_b[j] = measure.value(b, area_b, other, area[j], how);
        row_c[j] = measure.value(c, area_c, other, area[j], how);
        row_d[j] = measure.value(d, area_d, other, area[j], how);
    }
}

template <class Measure, class T>
void measure_rows(Measure measure, const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride,
                  int64_t count, T* out, int64_t out_stride) {
    const auto how = fastest<T>();
    int64_t i = begin;
    for (; i + 4 <= end; i += 4, out += 4 * out_stride)
        four_rows(measure, how, boxes + 4 * i, columns, stride, count, out, out + out_stride, out + 2 * out_stride,
                  out + 3 * out_stride);
    const T *x1 = columns, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *area = y2 + stride;
    for (; i < end; ++i, out += out_stride) {
        const Box<T> box = box_at(boxes, i);
        const T box_area = area_of(box);
        T* __restrict__ row = out;
        for (int64_t j = 0; j < count; ++j) {
            const Box<T> other = {x1[j], y1[j], x2[j], y2[j]};
            row[j] = measure.value(box, box_area, other, area[j], how);
        }
    }
}

// Copies `count` values, whole lines of the cache past it. `from` may be anywhere.
template <class T>
static inline void stream(T* to, const T* from, int64_t count) {
    int64_t k = 0;
#ifdef CPGR_X86
    constexpr int64_t line = 64 / sizeof(T);
    for (; k < count && (reinterpret_cast<uintptr_t>(to + k) & 63); ++k) to[k] = from[k];
    for (; k + line <= count; k += line) {
#ifdef __AVX512F__
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
#else
        for (int64_t part = 0; part < line; part += line / 4)
            _mm_stream_si128(reinterpret_cast<__m128i*>(to + k + part),
                             _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k + part)));
#endif
    }
#endif
    for (; k < count; ++k) to[k] = from[k];
}

template <class Measure, class T>
void stream_rows(Measure measure, const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride,
                 int64_t count, T* out, int64_t out_stride) {
    constexpr int64_t width = 4096 / sizeof(T), tile = 4;  // 16 KiB: half of the smallest L1
    alignas(64) T rows[tile * width];
    for (int64_t i = begin; i < end; i += tile) {
        const int64_t stop = i + tile < end ? i + tile : end;
        for (int64_t first = 0; first < count; first += width) {
            const int64_t size = count - first < width ? count - first : width;
            measure_rows(measure, boxes, i, stop, columns + first, stride, size, rows, width);
            for (int64_t k = i; k < stop; ++k)
                stream(out + (k - begin) * out_stride + first, rows + (k - i) * width, size);
        }
    }
#ifdef CPGR_X86
    _mm_sfence();
#endif
}

template <class Measure, class T>
void measure_pairs(Measure measure, const T* boxes1, const T* boxes2, int64_t begin, int64_t end,
                   T* __restrict__ out) {
    for (int64_t k = begin; k < end; ++k) {
        const Box<T> a = box_at(boxes1, k), b = box_at(boxes2, k);
        out[k] = measure.value(a, area_of(a), b, area_of(b));
    }
}

// The gradients of one box against `count` others, summed in as many running sums as a register holds.
template <class Measure, class T>
static inline Box<T> row_backward(Measure measure, Box<T> box, const T* __restrict__ grad,
                                  const T* __restrict__ columns, int64_t stride, int64_t count,
                                  T* __restrict__ grad_columns) {
    constexpr int64_t lanes = 64 / sizeof(T);
    T sum_x1[lanes] = {}, sum_y1[lanes] = {}, sum_x2[lanes] = {}, sum_y2[lanes] = {};
    for (int64_t first = 0; first < count; first += lanes) {
        const int64_t filled = count - first < lanes ? count - first : lanes;
        const T *x1 = columns + first, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *g = grad + first;
        T *gx1 = grad_columns + first, *gy1 = gx1 + stride, *gx2 = gy1 + stride, *gy2 = gx2 + stride;
        for (int64_t j = 0; j < filled; ++j) {
            Box<T> to_box, to_other;
            measure.gradient(box, Box<T>{x1[j], y1[j], x2[j], y2[j]}, g[j], to_box, to_other);
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

template <class Measure, class T>
void rows_backward(Measure measure, const T* grad, const T* boxes, int64_t rows, const T* columns, int64_t stride,
                   int64_t count, T* grad_boxes, T* grad_columns) {
    for (int64_t i = 0; i < rows; ++i)
        put_box(grad_boxes, i,
                row_backward(measure, box_at(boxes, i), grad + i * count, columns, stride, count, grad_columns));
}

template <class Measure, class T>
void pairs_backward(Measure measure, const T* grad, const T* boxes1, const T* boxes2, int64_t begin, int64_t end,
                    T* grad1, T* grad2) {
    for (int64_t k = begin; k < end; ++k) {
        Box<T> to_first, to_second;
        measure.gradient(box_at(boxes1, k), box_at(boxes2, k), grad[k], to_first, to_second);
        put_box(grad1, k, to_first);
        put_box(grad2, k, to_second);
    }
}

#define CPGR_INSTANTIATE(Measure, T)                                                                                 \
    template void measure_rows<Measure, T>(Measure, const T*, int64_t, int64_t, const T*, int64_t, int64_t, T*,      \
                                           int64_t);                                                                 \
    template void stream_rows<Measure, T>(Measure, const T*, int64_t, int64_t, const T*, int64_t, int64_t, T*,       \
                                          int64_t);                                                                  \
    template void measure_pairs<Measure, T>(Measure, const T*, const T*, int64_t, int64_t, T*);                      \
    template void rows_backward<Measure, T>(Measure, const T*, const T*, int64_t, const T*, int64_t, int64_t, T*,    \
                                            T*);                                                                     \
    template void pairs_backward<Measure, T>(Measure, const T*, const T*, const T*, int64_t, int64_t, T*, T*);
CPGR_INSTANTIATE(Iou<float>, float)
CPGR_INSTANTIATE(Iou<double>, double)
CPGR_INSTANTIATE(GeneralizedIou<float>, float)
CPGR_INSTANTIATE(GeneralizedIou<double>, double)

}  // namespace cpgr::CPGR_ISA
