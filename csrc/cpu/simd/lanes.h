// A register of numbers as GCC's vector type, of each level's width, with what attention needs: fused multiply-add,
// maximum, power of two. Internal to each compilation: see csrc/box.h for why nothing here may be shared by the linker.
#pragma once

#include <cstdint>

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
    typedef float V __attribute__((vector_size(kRegisterBytes), may_alias));
    typedef int32_t I __attribute__((vector_size(kRegisterBytes), may_alias));
    static constexpr int count = kRegisterBytes / 4, mantissa = 23;
    static constexpr int32_t bias = 127;
    static constexpr float magic = 12582912.0f, least = -126.0f;  // 1.5 * 2^23; below 2^least a result would be denormal
};

template <>
struct Lanes<double> {
    typedef double V __attribute__((vector_size(kRegisterBytes), may_alias));
    typedef int64_t I __attribute__((vector_size(kRegisterBytes), may_alias));
    static constexpr int count = kRegisterBytes / 8, mantissa = 52;
    static constexpr int64_t bias = 1023;
    static constexpr double magic = 6755399441055744.0, least = -1022.0;
};

template <class T>
using V = typename Lanes<T>::V;

template <class T>
static inline V<T> load(const T* from) {
    V<T> value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
}

template <class T>
static inline void store(T* to, V<T> value) {
    __builtin_memcpy(to, &value, sizeof(value));
}

// The first `count` numbers, and 0 beyond; reads no further.
template <class T>
static inline V<T> load_first(const T* from, int64_t count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
    else
        return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
#else
    V<T> value = {};
    for (int64_t i = 0; i < count; ++i) value[i] = from[i];
    return value;
#endif
}

template <class T>
static inline V<T> all(T value) {
    return value - V<T>{};
}

#if defined(__AVX512F__)
static inline V<float> fma(V<float> a, V<float> b, V<float> c) { return _mm512_fmadd_ps(a, b, c); }
static inline V<double> fma(V<double> a, V<double> b, V<double> c) { return _mm512_fmadd_pd(a, b, c); }
static inline V<float> larger(V<float> a, V<float> b) { return _mm512_max_ps(a, b); }
static inline V<double> larger(V<double> a, V<double> b) { return _mm512_max_pd(a, b); }
#elif defined(__AVX2__)
static inline V<float> fma(V<float> a, V<float> b, V<float> c) { return _mm256_fmadd_ps(a, b, c); }
static inline V<double> fma(V<double> a, V<double> b, V<double> c) { return _mm256_fmadd_pd(a, b, c); }
static inline V<float> larger(V<float> a, V<float> b) { return _mm256_max_ps(a, b); }
static inline V<double> larger(V<double> a, V<double> b) { return _mm256_max_pd(a, b); }
#else
template <class X>
static inline X fma(X a, X b, X c) {
    return a * b + c;
}
template <class X>
static inline X larger(X a, X b) {
    return a > b ? a : b;
}
#endif

// 2^fraction for a fraction in -1/2..1/2; for float a minimax polynomial (2e-9 relative, before rounding), for double
// Taylor's.
static inline V<float> power_of_fraction(V<float> x) {
    V<float> p = all(1.53533619e-4f);
    p = fma(p, x, all(1.33988744e-3f));
    p = fma(p, x, all(9.61843736e-3f));
    p = fma(p, x, all(5.55033247e-2f));
    p = fma(p, x, all(2.40226479e-1f));
    p = fma(p, x, all(6.93147203e-1f));
    return fma(p, x, all(1.0f));
}

static inline V<double> power_of_fraction(V<double> x) {
    constexpr double log2 = 0.693147180559945309417232;
    const V<double> y = x * all(log2);
    V<double> p = all(1.0 / 6227020800);
    constexpr double factorials[] = {479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1};
#pragma GCC unroll 13
    for (const double factorial : factorials) p = fma(p, y, all(1.0 / factorial));
    return p;
}

// 2^x for x up to 0 (or a little more); 0 where that would be denormal, and at -infinity. NaN stays.
template <class T>
static inline V<T> power_of_two(V<T> x) {
    using L = Lanes<T>;
    const V<T> shifted = x + all(L::magic);  // the nearest integer in the low bits
    const V<T> fraction = x - (shifted - all(L::magic));
    const auto exponent = ((typename L::I)shifted << L::mantissa) + (L::bias << L::mantissa);
    const V<T> value = power_of_fraction(fraction) * (V<T>)exponent;
    return x < all(L::least) ? V<T>{} : value;
}

// Lane i is the sum of the lanes of x[i], for as many registers as one has lanes; x is overwritten.
template <class T>
static inline V<T> sums_of_lanes(V<T>* x) {
    using I = typename Lanes<T>::I;
    constexpr int lanes = Lanes<T>::count;
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
        // Segments of 2 * half lanes, one a number: their halves are added, those of x[i] beside those of x[i + half].
        I low = {}, high = {};
#pragma GCC unroll 16
        for (int lane = 0; lane < lanes; ++lane) {
            const int segment = lane / half;
            low[lane] = segment % 2 * lanes + segment / 2 * 2 * half + lane % half;
            high[lane] = low[lane] + half;
        }
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            x[i] = (V<T>)__builtin_shuffle(x[i], x[i + half], low) + (V<T>)__builtin_shuffle(x[i], x[i + half], high);
    }
    return x[0];
}

// The square of as many registers as one has lanes, on its other side.
template <class T>
static inline void transpose_square(V<T>* x) {
    using I = typename Lanes<T>::I;
    constexpr int lanes = Lanes<T>::count;
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
        // Off-diagonal quarters of every square of 2 * half change places.
        I upper = {}, lower = {};
#pragma GCC unroll 16
        for (int lane = 0; lane < lanes; ++lane) {
            upper[lane] = lane & half ? lanes + lane - half : lane;
            lower[lane] = lane & half ? lanes + lane : lane + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            if (i & half) continue;
            const V<T> a = x[i], b = x[i + half];
            x[i] = (V<T>)__builtin_shuffle(a, b, upper);
            x[i + half] = (V<T>)__builtin_shuffle(a, b, lower);
        }
    }
}

}  // namespace cpgr::CPGR_ISA
