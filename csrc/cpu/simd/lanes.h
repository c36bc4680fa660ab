// A register of floats or doubles, as the compiler's vector type: + - * / and comparisons work lane by lane, and
// `mask ? a : b` chooses. One level's version exists in each compilation.
#pragma once

#include <cstdint>

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {

#if defined(__AVX512F__)
#define CPGR_REGISTER_BYTES 64
#elif defined(__AVX2__)
#define CPGR_REGISTER_BYTES 32
#else
#define CPGR_REGISTER_BYTES 16
#endif

template <class T>
struct Lanes;

// `Index` is an integer as wide as T, so that a mask of T chooses among indices too.
#define CPGR_LANES(T, I)                                                                                   \
    template <>                                                                                            \
    struct Lanes<T> {                                                                                      \
        using Index = I;                                                                                   \
        typedef T Reg __attribute__((vector_size(CPGR_REGISTER_BYTES)));                                   \
        typedef I IndexReg __attribute__((vector_size(CPGR_REGISTER_BYTES)));                              \
        typedef T Memory __attribute__((vector_size(CPGR_REGISTER_BYTES), aligned(sizeof(T)), may_alias)); \
        static constexpr int count = CPGR_REGISTER_BYTES / sizeof(T);                                      \
        static inline Reg load(const T* p) { return *reinterpret_cast<const Memory*>(p); }                 \
        static inline void store(T* p, Reg v) { *reinterpret_cast<Memory*>(p) = v; }                       \
        static inline Reg all(T x) { return x - Reg{}; }                                                   \
        static inline IndexReg load(const I* p) {                                                          \
            IndexReg v;                                                                                    \
            __builtin_memcpy(&v, p, sizeof(v));                                                            \
            return v;                                                                                      \
        }                                                                                                  \
        static inline void store(I* p, IndexReg v) { __builtin_memcpy(p, &v, sizeof(v)); }                 \
        static inline IndexReg all_index(I x) { return x - IndexReg{}; }                                   \
    };
CPGR_LANES(float, int32_t)
CPGR_LANES(double, int64_t)
#undef CPGR_LANES

using FloatReg = Lanes<float>::Reg;
using DoubleReg = Lanes<double>::Reg;

// a * b + c, rounded once where the level has the instruction.
#if defined(__AVX512F__)
static inline FloatReg fma(FloatReg a, FloatReg b, FloatReg c) { return (FloatReg)_mm512_fmadd_ps(a, b, c); }
static inline DoubleReg fma(DoubleReg a, DoubleReg b, DoubleReg c) { return (DoubleReg)_mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
static inline FloatReg fma(FloatReg a, FloatReg b, FloatReg c) { return (FloatReg)_mm256_fmadd_ps(a, b, c); }
static inline DoubleReg fma(DoubleReg a, DoubleReg b, DoubleReg c) { return (DoubleReg)_mm256_fmadd_pd(a, b, c); }
#else
static inline FloatReg fma(FloatReg a, FloatReg b, FloatReg c) { return a * b + c; }
static inline DoubleReg fma(DoubleReg a, DoubleReg b, DoubleReg c) { return a * b + c; }
#endif

// Whether any lane of a mask (0 or -1) is set.
template <class Mask>
static inline bool any(Mask mask) {
    uint64_t words[sizeof(mask) / 8], joined = 0;
    __builtin_memcpy(words, &mask, sizeof(mask));
    for (const uint64_t word : words) joined |= word;
    return joined != 0;
}

}  // namespace cpgr::CPGR_ISA
