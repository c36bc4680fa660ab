// A register of Vec<T>::lanes numbers, with what non-maximum suppression needs: comparisons as bit masks and the
// packing of chosen lanes. One level's version exists in each compilation.
#pragma once

#include <cstdint>

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {

template <class T>
struct Vec;

#if defined(__AVX512F__)

#define CPGR_VEC(T, N, REG, S)                                                                             \
    template <>                                                                                            \
    struct Vec<T> {                                                                                        \
        static constexpr int lanes = N;                                                                    \
        static constexpr uint32_t kAll = (1u << N) - 1;                                                    \
        REG v;                                                                                             \
        static inline Vec load(const T* p) { return {_mm512_loadu_##S(p)}; }                               \
        static inline Vec all(T x) { return {_mm512_set1_##S(x)}; }                                        \
        friend inline Vec operator+(Vec a, Vec b) { return {_mm512_add_##S(a.v, b.v)}; }                   \
        friend inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_##S(a.v, b.v)}; }                   \
        friend inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_##S(a.v, b.v)}; }                   \
        friend inline Vec operator/(Vec a, Vec b) { return {_mm512_div_##S(a.v, b.v)}; }                   \
        friend inline Vec multiply_subtract(Vec a, Vec b, Vec c) { return {_mm512_fmsub_##S(a.v, b.v, c.v)}; } \
        friend inline Vec larger(Vec a, Vec b) { return {_mm512_max_##S(a.v, b.v)}; }                      \
        friend inline Vec smaller(Vec a, Vec b) { return {_mm512_min_##S(a.v, b.v)}; }                     \
        friend inline uint32_t above(Vec a, Vec b) { return _mm512_cmp_##S##_mask(a.v, b.v, _CMP_GT_OQ); } \
        friend inline uint32_t reaches(Vec a, Vec b) {                                                     \
            return _mm512_cmp_##S##_mask(a.v, b.v, _CMP_GE_OQ);                                            \
        }                                                                                                  \
    };
CPGR_VEC(float, 16, __m512, ps)
CPGR_VEC(double, 8, __m512d, pd)

// Writes the entries of `mask` to `to`, packed; may read and overwrite 64 bytes at either place.
static inline void pack(float* to, const float* from, uint32_t mask) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), _mm512_loadu_ps(from)));
}
static inline void pack(double* to, const double* from, uint32_t mask) {
    _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(mask), _mm512_loadu_pd(from)));
}
static inline void pack(int32_t* to, const int32_t* from, uint32_t mask) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), _mm512_loadu_si512(from)));
}

#elif defined(__AVX2__)

#define CPGR_VEC(T, N, REG, S)                                                                 \
    template <>                                                                                \
    struct Vec<T> {                                                                            \
        static constexpr int lanes = N;                                                        \
        static constexpr uint32_t kAll = (1u << N) - 1;                                        \
        REG v;                                                                                 \
        static inline Vec load(const T* p) { return {_mm256_loadu_##S(p)}; }                   \
        static inline Vec all(T x) { return {_mm256_set1_##S(x)}; }                            \
        friend inline Vec operator+(Vec a, Vec b) { return {_mm256_add_##S(a.v, b.v)}; }       \
        friend inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_##S(a.v, b.v)}; }       \
        friend inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_##S(a.v, b.v)}; }       \
        friend inline Vec operator/(Vec a, Vec b) { return {_mm256_div_##S(a.v, b.v)}; }       \
        friend inline Vec multiply_subtract(Vec a, Vec b, Vec c) { return {_mm256_fmsub_##S(a.v, b.v, c.v)}; } \
        friend inline Vec larger(Vec a, Vec b) { return {_mm256_max_##S(a.v, b.v)}; }          \
        friend inline Vec smaller(Vec a, Vec b) { return {_mm256_min_##S(a.v, b.v)}; }         \
        friend inline uint32_t above(Vec a, Vec b) {                                           \
            return _mm256_movemask_##S(_mm256_cmp_##S(a.v, b.v, _CMP_GT_OQ));                  \
        }                                                                                      \
        friend inline uint32_t reaches(Vec a, Vec b) {                                         \
            return _mm256_movemask_##S(_mm256_cmp_##S(a.v, b.v, _CMP_GE_OQ));                  \
        }                                                                                      \
    };
CPGR_VEC(float, 8, __m256, ps)
CPGR_VEC(double, 4, __m256d, pd)

#else

template <class T>
struct Vec {
    static constexpr int lanes = 1;
    static constexpr uint32_t kAll = 1;
    T v;
    static inline Vec load(const T* p) { return {*p}; }
    static inline Vec all(T x) { return {x}; }
    friend inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
    friend inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
    friend inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
    friend inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
    friend inline Vec multiply_subtract(Vec a, Vec b, Vec c) { return {a.v * b.v - c.v}; }
    friend inline Vec larger(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
    friend inline Vec smaller(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
    friend inline uint32_t above(Vec a, Vec b) { return a.v > b.v; }
    friend inline uint32_t reaches(Vec a, Vec b) { return a.v >= b.v; }
};

#endif
#undef CPGR_VEC

#if !defined(__AVX512F__)
template <class T>
static inline void pack(T* to, const T* from, uint32_t mask) {
    for (; mask; mask &= mask - 1) *to++ = from[__builtin_ctz(mask)];
}
#endif

}  // namespace cpgr::CPGR_ISA
