// Written on GCC's vector types, as wide as the level's registers. A sum always has 32 lanes, in however many
// registers, so its order, and with it every bit of the result, is the same on all levels. No template of the standard
// library may be used here (see box.h).
#include "mask_overlap.h"

#include <cstring>

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kBlock = 32;  // pixels a round

// A register of numbers, one of integers of their size (a comparison gives -1 or 0), and the bytes of as many pixels.
template <class T>
struct Lanes;

template <>
struct Lanes<float> {
    static constexpr int count = kBytes / 4;
    typedef float Numbers __attribute__((vector_size(kBytes)));
    typedef int32_t Integer;
    typedef Integer Integers __attribute__((vector_size(kBytes)));
    typedef uint8_t Bytes __attribute__((vector_size(kBytes / 4)));
};

template <>
struct Lanes<double> {
    static constexpr int count = kBytes / 8;
    typedef double Numbers __attribute__((vector_size(kBytes)));
    typedef int64_t Integer;
    typedef Integer Integers __attribute__((vector_size(kBytes)));
    typedef uint8_t Bytes __attribute__((vector_size(kBytes / 8)));
};

template <class T>
using Numbers = typename Lanes<T>::Numbers;
template <class T>
using Integers = typename Lanes<T>::Integers;
template <class T>
constexpr int kVectors = kBlock / Lanes<T>::count;

template <class V>
inline V load(const void* from) {
    V values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

template <class T>
inline Numbers<T> all(T value) {
    return value - Numbers<T>{};  // minus, not plus: keeps a negative zero
}

// Adds 32 lanes up in a fixed order: each of the lower half and its partner of the upper half, and so on.
template <int Width, class T>
inline T fold(T* lanes) {
    if constexpr (Width == 0) {
        return lanes[0];
    } else {
        for (int i = 0; i < Width; ++i) lanes[i] += lanes[i + Width];
        return fold<Width / 2>(lanes);
    }
}

template <class T>
inline T total(const Numbers<T>* sums) {
    T lanes[kBlock];
    std::memcpy(lanes, sums, sizeof lanes);
    return fold<kBlock / 2>(lanes);
}

// The bytes of as many pixels as a register has lanes, as integers; GCC's own conversion takes them apart one by one.
template <class T>
inline Integers<T> widen(const uint8_t* from) {
    const auto bytes = load<typename Lanes<T>::Bytes>(from);
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Integers<T>)_mm512_cvtepu8_epi32((__m128i)bytes);
    if constexpr (sizeof(T) == 8) return (Integers<T>)_mm512_cvtepu8_epi64(_mm_cvtsi64_si128((int64_t)bytes));
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return (Integers<T>)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
    if constexpr (sizeof(T) == 8) return (Integers<T>)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128((int32_t)bytes));
#endif
    return __builtin_convertvector(bytes, Integers<T>);
}

// A pixel's part of the product, by the mask's type.
template <class T>
inline T product(T response, uint8_t inside) {
    return inside ? response : T(0);
}
template <class T>
inline T product(T response, T mask) {
    return response * mask;
}

// A register of a mask: what is in it of a response, and its size, all of it or where `where` is set.
template <class T, class M>
struct MaskLanes {
    Numbers<T> mask;
    explicit inline MaskLanes(const M* from) : mask(load<Numbers<T>>(from)) {}
    inline Numbers<T> of(const Numbers<T>& response) const { return response * mask; }
    inline Numbers<T> size() const { return mask; }
    inline Numbers<T> size(const Integers<T>& where) const { return where ? mask : Numbers<T>{}; }
};

template <class T>
struct MaskLanes<T, uint8_t> {
    Integers<T> mask;
    explicit inline MaskLanes(const uint8_t* from) : mask(widen<T>(from) != 0) {}
    inline Numbers<T> of(const Numbers<T>& response) const { return mask ? response : Numbers<T>{}; }
    inline Numbers<T> size() const { return mask ? all<T>(1) : Numbers<T>{}; }
    inline Numbers<T> size(const Integers<T>& where) const { return (mask & where) ? all<T>(1) : Numbers<T>{}; }
};

template <class T>
struct Peak {
    T value;
    int64_t at;
};

// The first greatest product of `pixels` pixels, or the first that is NaN.
template <class T, class M>
Peak<T> find_peak(const T* response, const M* mask, int64_t pixels) {
    Peak<T> peak = {product(response[0], mask[0]), 0};
    for (int64_t i = 1; i < pixels && peak.value == peak.value; ++i) {
        const T x = product(response[i], mask[i]);
        if (!(x <= peak.value)) peak = {x, i};
    }
    return peak;
}

// Sums of one map in one mask, and in each lane the greatest product with the first block that has it.
template <class T, class M>
struct Round {
    Numbers<T> inter[kVectors<T>] = {}, hard[kVectors<T>] = {}, size[kVectors<T>] = {};
    Numbers<T> best = all(-static_cast<T>(__builtin_inf()));
    Integers<T> block_of_best = {};

    template <bool Whole>
    inline void add(const T* response, const M* mask, const Numbers<T>& threshold, int64_t block) {
        Numbers<T> greatest;
        for (int v = 0; v < kVectors<T>; ++v) {
            const int at = v * Lanes<T>::count;
            const Numbers<T> p = load<Numbers<T>>(response + at);
            const MaskLanes<T, M> m(mask + at);
            const Numbers<T> x = m.of(p);
            inter[v] += x;
            size[v] += m.size();
            hard[v] += m.size(p > threshold);
            greatest = v == 0 ? x : x > greatest ? x : greatest;
        }
        if (!Whole) return;
        const Integers<T> better = greatest > best;
        best = better ? greatest : best;
        block_of_best = better ? Integers<T>{} + static_cast<typename Lanes<T>::Integer>(block) : block_of_best;
    }

    // The first of the whole blocks' pixels with the greatest product.
    inline Peak<T> peak(const T* response, const M* mask) const {
        T values[Lanes<T>::count], value;
        typename Lanes<T>::Integer blocks[Lanes<T>::count], block = -1;
        std::memcpy(values, &best, sizeof values);
        std::memcpy(blocks, &block_of_best, sizeof blocks);
        value = values[0];
        for (int i = 1; i < Lanes<T>::count; ++i) value = values[i] > value ? values[i] : value;
        for (int i = 0; i < Lanes<T>::count; ++i)
            if (values[i] == value && (block < 0 || blocks[i] < block)) block = blocks[i];
        for (int64_t i = block * kBlock;; ++i)
            if (product(response[i], mask[i]) == value) return {value, i};
    }
};

// One map in one mask over at most a tile. Returns the mask's size.
template <class T, class M>
T overlap_tile(const T* response, const M* mask, int64_t first, int64_t pixels, T threshold, Overlap<T>& to) {
    Round<T, M> round;
    const Numbers<T> above = all(threshold);
    const int64_t rest = pixels % kBlock, whole = pixels - rest;
    for (int64_t i = 0; i < whole; i += kBlock)
        round.template add<true>(response + i, mask + i, above, i / kBlock);
    if (rest) {
        T last_response[kBlock] = {};
        M last_mask[kBlock] = {};
        std::memcpy(last_response, response + whole, rest * sizeof(T));
        std::memcpy(last_mask, mask + whole, rest * sizeof(M));
        round.template add<false>(last_response, last_mask, above, 0);
    }
    const T inter = total<T>(round.inter);
    Peak<T> peak;
    if (inter != inter || whole == 0) {
        // A NaN among the products makes their sum NaN, and only then the comparisons may have missed something.
        peak = find_peak(response, mask, pixels);
    } else {
        peak = round.peak(response, mask);
        if (rest) {
            const Peak<T> last = find_peak(response + whole, mask + whole, rest);
            if (last.value > peak.value) peak = {last.value, whole + last.at};
        }
    }
    to.inter += inter;
    to.hard += total<T>(round.hard);
    if (first == 0 || (to.peak == to.peak && !(peak.value <= to.peak))) {
        to.peak = peak.value;
        to.argmax = first + peak.at;
    }
    return total<T>(round.size);
}

}  // namespace

template <class T, class M>
void add_tile(const T* responses, int64_t maps, const M* masks, int64_t count, int64_t stride, int64_t first,
              int64_t pixels, T threshold, Overlap<T>* overlaps, double* sizes) {
    for (int64_t n = 0; n < count; ++n) {
        T size = 0;
        for (int64_t k = 0; k < maps; ++k)
            size = overlap_tile(responses + k * stride + first, masks + n * stride + first, first, pixels, threshold,
                                overlaps[n * maps + k]);
        sizes[n] += size;
    }
}

template <class T>
double sum_of(const T* values, int64_t count) {
    double sum = 0;
    for (int64_t first = 0; first < count; first += kTile) {
        const int64_t size = count - first < kTile ? count - first : kTile;
        Numbers<T> sums[kVectors<T>] = {};
        for (int64_t i = 0; i < size; i += kBlock) {
            const T* from = values + first + i;
            T last[kBlock] = {};
            if (size - i < kBlock) from = static_cast<T*>(std::memcpy(last, from, (size - i) * sizeof(T)));
            for (int v = 0; v < kVectors<T>; ++v) sums[v] += load<Numbers<T>>(from + v * Lanes<T>::count);
        }
        sum += total<T>(sums);
    }
    return sum;
}

template <class T, class M>
void weigh_masks(const T* weights, const M* masks, int64_t count, int64_t stride, int64_t first, int64_t last,
                 T constant, T* out) {
    int64_t i = first;
    for (; i + kBlock <= last; i += kBlock) {
        Numbers<T> sums[kVectors<T>];
        for (int v = 0; v < kVectors<T>; ++v) sums[v] = all(constant);
        for (int64_t n = 0; n < count; ++n) {
            if (weights[n] == 0) continue;  // most, where a loss chooses one mask
            const Numbers<T> weight = all(weights[n]);
            for (int v = 0; v < kVectors<T>; ++v)
                sums[v] += MaskLanes<T, M>(masks + n * stride + i + v * Lanes<T>::count).of(weight);
        }
        std::memcpy(out + i, sums, sizeof sums);
    }
    for (; i < last; ++i) {
        T sum = constant;
        for (int64_t n = 0; n < count; ++n)
            if (weights[n] != 0) sum += product(weights[n], masks[n * stride + i]);
        out[i] = sum;
    }
}

template <class T>
void weigh_responses(const T* weights, const T* above, int64_t weight_stride, const T* responses, int64_t maps,
                     int64_t pixels, T threshold, T constant, T* __restrict__ out) {
    for (int64_t i = 0; i < pixels; ++i) out[i] = constant;
    for (int64_t k = 0; k < maps; ++k) {
        const T weight = weights ? weights[k * weight_stride] : T(0), extra = above ? above[k * weight_stride] : T(0);
        const T* response = responses + k * pixels;
        if (weight != 0)
            for (int64_t i = 0; i < pixels; ++i) out[i] += weight * response[i];
        if (extra != 0)
            for (int64_t i = 0; i < pixels; ++i) out[i] += response[i] > threshold ? extra : T(0);
    }
}

#define CPGR_INSTANTIATE(T, M)                                                                                       \
    template void add_tile<T, M>(const T*, int64_t, const M*, int64_t, int64_t, int64_t, int64_t, T, Overlap<T>*,    \
                                 double*);                                                                           \
    template void weigh_masks<T, M>(const T*, const M*, int64_t, int64_t, int64_t, int64_t, T, T*);
CPGR_INSTANTIATE(float, uint8_t)
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(double, uint8_t)
CPGR_INSTANTIATE(double, double)
#undef CPGR_INSTANTIATE
#define CPGR_INSTANTIATE(T)                                                                                          \
    template double sum_of<T>(const T*, int64_t);                                                                    \
    template void weigh_responses<T>(const T*, const T*, int64_t, const T*, int64_t, int64_t, T, T, T*);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::CPGR_ISA
