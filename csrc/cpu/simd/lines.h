// A cache line of a packed mask (a tile, 512 bits) in registers, and a counter of the bits that two lines share.
// One level's version exists in each compilation.
#pragma once

#include <cstdint>

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {
namespace {

#if defined(__AVX512BW__)

struct Line {
    __m512i v;
    static inline Line load(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
    friend inline Line operator&(Line a, Line b) { return {_mm512_and_si512(a.v, b.v)}; }
    friend inline Line operator|(Line a, Line b) { return {_mm512_or_si512(a.v, b.v)}; }
    inline void store(uint64_t* p) const { _mm512_storeu_si512(p, v); }
};

static inline __m512i bit_counts(__m512i v) {
#ifdef __AVX512VPOPCNTDQ__
    return _mm512_popcnt_epi64(v);
#else
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(v, nibble));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble));
    return _mm512_sad_epu8(_mm512_add_epi8(low, high), _mm512_setzero_si512());
#endif
}

struct Counter {
    __m512i sum = _mm512_setzero_si512();
    inline void add(Line line) { sum = _mm512_add_epi64(sum, bit_counts(line.v)); }
    inline int64_t total() const { return _mm512_reduce_add_epi64(sum); }
};

#elif defined(__AVX2__)

struct Line {
    __m256i low, high;
    static inline Line load(const uint64_t* p) {
        const __m256i* q = reinterpret_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
    }
    friend inline Line operator&(Line a, Line b) {
        return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
    }
    friend inline Line operator|(Line a, Line b) {
        return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
    }
    inline void store(uint64_t* p) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), low);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, high);
    }
};

struct Counter {
    __m256i sum = _mm256_setzero_si256();
    static inline __m256i byte_counts(__m256i v) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const __m256i nibble = _mm256_set1_epi8(15);
        return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, nibble)),
                               _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
    }
    inline void add(Line line) {
        const __m256i bytes = _mm256_add_epi8(byte_counts(line.low), byte_counts(line.high));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
    }
    inline int64_t total() const {
        return _mm256_extract_epi64(sum, 0) + _mm256_extract_epi64(sum, 1) + _mm256_extract_epi64(sum, 2) +
               _mm256_extract_epi64(sum, 3);
    }
};

#else

struct Line {
    uint64_t word[8];
    static inline Line load(const uint64_t* p) {
        Line line;
        for (int k = 0; k < 8; ++k) line.word[k] = p[k];
        return line;
    }
    friend inline Line operator&(Line a, const Line& b) {
        for (int k = 0; k < 8; ++k) a.word[k] &= b.word[k];
        return a;
    }
    friend inline Line operator|(Line a, const Line& b) {
        for (int k = 0; k < 8; ++k) a.word[k] |= b.word[k];
        return a;
    }
    inline void store(uint64_t* p) const {
        for (int k = 0; k < 8; ++k) p[k] = word[k];
    }
};

// Counts within bytes, eight words at once: without an instruction for it __builtin_popcountll is a function call.
struct Counter {
    int64_t sum = 0;
    inline void add(const Line& line) {
        constexpr uint64_t ones = 0x0101010101010101u;
        uint64_t bytes = 0;
        for (int k = 0; k < 8; ++k) {
            uint64_t x = line.word[k];
            x -= (x >> 1) & (ones * 0x55);
            x = (x & (ones * 0x33)) + ((x >> 2) & (ones * 0x33));
            bytes += (x + (x >> 4)) & (ones * 0x0f);
        }
        // At most 64 a byte: their sum needs more than the top byte that a product with `ones` would leave.
        bytes = (bytes & 0x00ff00ff00ff00ffu) + ((bytes >> 8) & 0x00ff00ff00ff00ffu);
        sum += static_cast<int64_t>((bytes * 0x0001000100010001u) >> 48);
    }
    inline int64_t total() const { return sum; }
};

#endif

}  // namespace
}  // namespace cpgr::CPGR_ISA
