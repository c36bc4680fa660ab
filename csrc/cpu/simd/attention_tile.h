// What the forward and the backward pass share: a tile of queries lies across the lanes of one or two registers, and
// everything that is indexed by key or by feature is a row of such registers. Keys and values are then read as they lie,
// by broadcasting single numbers, and the softmax has no operation across lanes.
#pragma once

#include "../attention.h"
#include "lanes.h"

namespace cpgr::CPGR_ISA {

// Keys at a time: their scores and values stay in the first-level cache.
constexpr int64_t kBlock = 128;

// c[i] (+)= sum over j < depth of a[i * row + j * column] * b[j], i < N; b and c are rows of `registers` registers.
template <class T, int N, int registers>
static inline __attribute__((always_inline)) void product_rows(int64_t depth, const T* a, int64_t row, int64_t column,
                                                               const T* b, int64_t b_row, T* c, int64_t c_row,
                                                               bool add) {
    constexpr int lanes = Lanes<T>::count;
    V<T> sum[N][registers] = {};
    for (int64_t j = 0; j < depth; ++j) {
        V<T> right[registers];
#pragma GCC unroll 4
        for (int r = 0; r < registers; ++r) right[r] = load(b + j * b_row + r * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) {
            const V<T> left = all(a[i * row + j * column]);
#pragma GCC unroll 4
            for (int r = 0; r < registers; ++r) sum[i][r] = fma(left, right[r], sum[i][r]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 4
        for (int r = 0; r < registers; ++r) {
            T* place = c + i * c_row + r * lanes;
            store<T>(place, add ? sum[i][r] + load(place) : sum[i][r]);
        }
}

// As many rows at a time as there are registers for their sums.
template <class T, int registers>
static void product(int64_t rows, int64_t depth, const T* a, int64_t row, int64_t column, const T* b, int64_t b_row,
                    T* c, int64_t c_row, bool add) {
#if defined(__AVX512F__)
    constexpr int most = 12, some = 8;
#else
    constexpr int most = 6, some = 4;
#endif
    int64_t i = 0;
#define CPGR_ROWS(N)                                                                                                  \
    {                                                                                                                 \
        if (row == 1)                                                                                                 \
            product_rows<T, N, registers>(depth, a + i, 1, column, b, b_row, c + i * c_row, c_row, add);              \
        else if (column == 1)                                                                                         \
            product_rows<T, N, registers>(depth, a + i * row, row, 1, b, b_row, c + i * c_row, c_row, add);           \
        else                                                                                                          \
            product_rows<T, N, registers>(depth, a + i * row, row, column, b, b_row, c + i * c_row, c_row, add);      \
        i += N;                                                                                                       \
    }
    while (rows - i >= most && rows - i != 2 * some) CPGR_ROWS(most)
    while (rows - i >= some) CPGR_ROWS(some)
    while (rows - i >= 2) CPGR_ROWS(2)
    if (i < rows) CPGR_ROWS(1)
#undef CPGR_ROWS
}

// to[lane * to_row + i] = from[i * from_row + lane] * factor[lane], in squares that stay in the cache.
template <class T>
static void transpose(const T* from, int64_t from_row, int64_t length, int64_t count, T* to, int64_t to_row,
                      const T* factor) {
    constexpr int64_t square = 16;
    for (int64_t begin = 0; begin < length; begin += square) {
        const int64_t end = length - begin < square ? length : begin + square;
        for (int64_t lane = 0; lane < count; ++lane)
            for (int64_t i = begin; i < end; ++i)
                to[lane * to_row + i] = from[i * from_row + lane] * (factor ? factor[lane] : T(1));
    }
}

// to[i * lanes + lane] = from[queries[lane]][i] * factor for lane < count, and 0 in the lanes beyond.
template <class T>
static void pack(const T* from, int64_t from_row, const int64_t* queries, int64_t count, int64_t length, T factor, T* to,
                 int64_t lanes) {
    constexpr int64_t square = 16;
    for (int64_t begin = 0; begin < length; begin += square) {
        const int64_t end = length - begin < square ? length : begin + square;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const T* row = lane < count ? from + queries[lane] * from_row : nullptr;
            for (int64_t i = begin; i < end; ++i) to[i * lanes + lane] = row ? row[i] * factor : T(0);
        }
    }
}

// What a block of keys is to a tile of queries.
enum Sight : uint8_t { hidden, mixed, open };

// log2(e) * the numbers to add to the scores of keys begin..end, -infinity at pairs that do not take part; [key][lane].
// Finite numbers stay finite: rows masked by the type's least number alone are uniform, as in torch.
template <class T>
static Sight pack_bias(const AttentionInput<T>& in, int64_t b, int64_t h, const int64_t* queries, int64_t count,
                       int64_t begin, int64_t end, T* bias, int64_t lanes) {
    constexpr T infinity = __builtin_inf(), most = sizeof(T) == 4 ? T(3.402823466e38) : T(1.7976931348623157e308);
    constexpr T log2e = T(1.44269504088896340736);
    int64_t first = queries[0], last = queries[0];
    for (int64_t lane = 1; lane < count; ++lane) {
        if (queries[lane] < first) first = queries[lane];
        if (queries[lane] > last) last = queries[lane];
    }
    if (in.causal && begin > last) return hidden;
    const bool cut = in.causal && end - 1 > first;
    if (!cut && !in.key_padding && in.mask_kind == Mask::none) return open;

    for (int64_t i = 0; i < (end - begin) * lanes; ++i) bias[i] = T(0);
    for (int64_t lane = 0; lane < count; ++lane) {
        const int64_t from = b * in.mask_stride[0] + h * in.mask_stride[1] + queries[lane] * in.mask_stride[2];
        if (in.mask_kind == Mask::boolean) {
            const uint8_t* seen = static_cast<const uint8_t*>(in.mask) + from;
            for (int64_t s = begin; s < end; ++s)
                if (!seen[s * in.mask_stride[3]]) bias[(s - begin) * lanes + lane] = -infinity;
        } else if (in.mask_kind == Mask::number) {
            const T* added = static_cast<const T*>(in.mask) + from;
            for (int64_t s = begin; s < end; ++s) {
                const T value = added[s * in.mask_stride[3]], scaled = value * log2e;
                const bool too_far = scaled == -infinity && value != -infinity;
                bias[(s - begin) * lanes + lane] = too_far ? -most : scaled;
            }
        }
        if (cut)
            for (int64_t s = queries[lane] < begin ? begin : queries[lane] + 1; s < end; ++s)
                bias[(s - begin) * lanes + lane] = -infinity;
    }
    if (in.key_padding)
        for (int64_t s = begin; s < end; ++s)
            if (in.key_padding[b * in.keys + s])
                for (int64_t lane = 0; lane < lanes; ++lane) bias[(s - begin) * lanes + lane] = -infinity;

    bool any = false, all_zero = true;
    for (int64_t s = 0; s < end - begin; ++s)
        for (int64_t lane = 0; lane < count; ++lane) {
            any |= bias[s * lanes + lane] != -infinity;
            all_zero &= bias[s * lanes + lane] == T(0);
        }
    return !any ? hidden : all_zero ? open : mixed;
}

// A pair that does not take part is out whatever its score, NaN too.
template <class T>
static inline V<T> masked(V<T> score, V<T> bias) {
    const V<T> out = all(T(-__builtin_inf()));
    return bias == out ? out : score + bias;
}

template <class T>
static inline int64_t blocks(int64_t keys) {
    return (keys + kBlock - 1) / kBlock;
}

}  // namespace cpgr::CPGR_ISA
