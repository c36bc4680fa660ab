// What the forward and the backward pass share: a tile of queries lies across the lanes of one to four registers, and
// everything that is indexed by key or by feature is a row of such registers. Keys and values are then read as they lie,
// by broadcasting single numbers, and the softmax has no operation across lanes.
#pragma once

#include "../attention.h"
#include "lanes.h"

namespace cpgr::CPGR_ISA {

// Numbers as they are read: those of 16 bits as float.
static inline float number(float value) { return value; }
static inline double number(double value) { return value; }
static inline float number(Bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

static inline V<float> load(const Bfloat16* from) {
#if defined(__AVX512F__)
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
#elif defined(__AVX2__)
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
#else
    V<float> value;
    for (int i = 0; i < Lanes<float>::count; ++i) value[i] = number(from[i]);
    return value;
#endif
}

static inline V<float> load_first(const Bfloat16* from, int64_t count) {
    V<float> value = {};
    for (int64_t i = 0; i < count; ++i) value[i] = number(from[i]);
    return value;
}

// Rows of a product at a time: as many as there are registers for their sums.
#if defined(__AVX512F__)
constexpr int kRows = 12, kSomeRows = 8;
#else
constexpr int kRows = 6, kSomeRows = 4;
#endif

// Keys at a time: their weights and values stay in the first-level cache. A multiple of kRows.
constexpr int64_t kBlock = 72;

// What is to be read after a product: rows of `lines` cache lines, that lie `row` apart. Heads lie beside each other in
// memory, so that a head's rows are short and far apart, too far for the processor to see what comes next; and fetched in
// one go they would queue up.
template <class S>
struct Ahead {
    const S* from = nullptr;
    int64_t row = 0;
};

template <class S>
static inline void fetch(const Ahead<S>& ahead, int64_t line_row, int64_t column) {
    if (ahead.from) __builtin_prefetch(ahead.from + line_row * ahead.row + column);
}

// c[i] (+)= sum over j < depth of a[i * row + j * column] * b[j], i < N; b and c are rows of `registers` registers.
template <class T, int N, int registers, class S = T>
static inline __attribute__((always_inline)) void product_rows(int64_t depth, const T* a, int64_t row, int64_t column,
                                                               const T* b, int64_t b_row, T* c, int64_t c_row,
                                                               bool add, const Ahead<S>* ahead = nullptr) {
    constexpr int lanes = Lanes<T>::count, line = 64 / sizeof(T);
    V<T> sum[N][registers] = {};
    for (int64_t j = 0; j < depth; ++j) {
        if (ahead && j % line < N) {
            fetch(ahead[0], j % line, j - j % line);
            fetch(ahead[1], j % line, j - j % line);
        }
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

// The same for any number of rows, of one register or two; `row` or `column` is 1.
template <class T, int registers>
static void narrow_product(int64_t rows, int64_t depth, const T* a, int64_t row, int64_t column, const T* b,
                           int64_t b_row, T* c, int64_t c_row, bool add) {
    int64_t i = 0;
    // With the step of 1 known to the compiler, one pointer serves all rows, or one index all pointers.
#define CPGR_ROWS(N)                                                                                        \
    {                                                                                                       \
        if (row == 1)                                                                                       \
            product_rows<T, N, registers>(depth, a + i, 1, column, b, b_row, c + i * c_row, c_row, add);    \
        else                                                                                                \
            product_rows<T, N, registers>(depth, a + i * row, row, 1, b, b_row, c + i * c_row, c_row, add); \
        i += N;                                                                                             \
    }
    while (rows - i >= kRows && rows - i != 2 * kSomeRows) CPGR_ROWS(kRows)
    while (rows - i >= kSomeRows) CPGR_ROWS(kSomeRows)
    while (rows - i >= 2) CPGR_ROWS(2)
    if (i < rows) CPGR_ROWS(1)
#undef CPGR_ROWS
}

// The same; there are registers for the sums of two columns of registers at a time.
template <class T, int registers>
static void product(int64_t rows, int64_t depth, const T* a, int64_t row, int64_t column, const T* b, int64_t b_row,
                    T* c, int64_t c_row, bool add) {
    constexpr int few = registers > 2 ? 2 : registers, lanes = Lanes<T>::count;
    for (int first = 0; first < registers * lanes; first += few * lanes)
        narrow_product<T, few>(rows, depth, a, row, column, b + first, b_row, c + first, c_row, add);
}

// scores[i] = sum over d of keys[i][d] * queries[d], i < count. On the way `ahead` fetches two rows for each of these.
template <class T, int registers, class S>
static void scores_of(int64_t count, int64_t width, const T* keys, int64_t key_row, const T* queries, T* scores,
                      const Ahead<S> (&ahead)[2]) {
    constexpr int row = registers * Lanes<T>::count;
    int64_t i = 0;
    for (; i + kRows <= count; i += kRows) {
        Ahead<S> next[2] = {ahead[0], ahead[1]};
        for (auto& each : next)
            if (each.from) each.from += i * each.row;
        constexpr int few = registers > 2 ? 2 : registers;
        for (int first = 0; first < row; first += few * Lanes<T>::count)
            product_rows<T, kRows, few>(width, keys + i * key_row, key_row, 1, queries + first, row,
                                        scores + i * row + first, row, false, first ? nullptr : next);
    }
    product<T, registers>(count - i, width, keys + i * key_row, key_row, 1, queries, row, scores + i * row, row, false);
}

template <class T, class S>
static void copy_rows(const S* from, int64_t from_row, int64_t rows, int64_t width, T* to, int64_t to_row) {
    constexpr int lanes = Lanes<T>::count;
    for (int64_t i = 0; i < rows; ++i) {
        int64_t d = 0;
        for (; d + lanes <= width; d += lanes) store<T>(to + i * to_row + d, load(from + i * from_row + d));
        for (; d < width; ++d) to[i * to_row + d] = number(from[i * from_row + d]);
    }
}

// Rows this far apart share few sets of the first-level cache and drive each other out: they are copied together.
template <class T>
static bool crowded(int64_t row) {
    return row * static_cast<int64_t>(sizeof(T)) % 2048 == 0;
}

template <class T>
struct Rows {
    const T* at;
    int64_t row;
};

// `count` rows as a product reads them: as they lie, or copied to `place` where they are crowded or of 16 bits.
template <class T, class S>
static Rows<T> readable(const S* from, int64_t from_row, int64_t count, int64_t width, T* place) {
    if constexpr (sizeof(S) == sizeof(T))
        if (!crowded<T>(from_row)) return {from, from_row};
    copy_rows(from, from_row, count, width, place, width);
    return {place, width};
}

// to[lane * to_row + i] = from[i * from_row + lane] * factor[lane], lane < count, i < length; from has whole registers.
template <class T>
static void transpose(const T* from, int64_t from_row, int64_t length, int64_t count, T* to, int64_t to_row,
                      const T* factor) {
    constexpr int lanes = Lanes<T>::count;
    for (int64_t first = 0; first < count; first += lanes) {
        const int64_t filled = count - first < lanes ? count - first : lanes;
        const V<T> scaled = factor ? load(factor + first) : all(T(1));
        int64_t i = 0;
        for (; i + lanes <= length; i += lanes) {
            V<T> x[lanes];
            for (int j = 0; j < lanes; ++j) x[j] = load(from + (i + j) * from_row + first) * scaled;
            transpose_square<T>(x);
            for (int64_t lane = 0; lane < filled; ++lane) store<T>(to + (first + lane) * to_row + i, x[lane]);
        }
        for (; i < length; ++i)
            for (int64_t lane = 0; lane < filled; ++lane)
                to[(first + lane) * to_row + i] = from[i * from_row + first + lane] * scaled[lane];
    }
}

// to[i * row + lane] = from[queries[lane]][i] * factor for lane < count, and 0 in the lanes beyond.
template <class T, int registers, class S>
static void pack(const S* from, int64_t from_row, const int64_t* queries, int64_t count, int64_t length, T factor,
                 T* to) {
    constexpr int lanes = Lanes<T>::count, row = registers * lanes;
    for (int64_t first = 0; first < row; first += lanes) {
        int64_t i = 0;
        for (; i + lanes <= length; i += lanes) {
            V<T> x[lanes];
            for (int j = 0; j < lanes; ++j)
                x[j] = first + j < count ? load(from + queries[first + j] * from_row + i) * all(factor) : V<T>{};
            transpose_square<T>(x);
            for (int j = 0; j < lanes; ++j) store<T>(to + (i + j) * row + first, x[j]);
        }
        for (; i < length; ++i)
            for (int64_t lane = first; lane < first + lanes; ++lane)
                to[i * row + lane] = lane < count ? number(from[queries[lane] * from_row + i]) * factor : T(0);
    }
}

// What a block of keys is to a tile of queries.
enum Sight : uint8_t { hidden, mixed, open };

// log2(e) * the numbers to add to the scores of keys begin..end, -infinity at pairs that do not take part; [key][lane].
// Finite numbers stay finite: rows masked by the type's least number alone are uniform, as in torch.
template <class T, class S>
static Sight pack_bias(const AttentionInput<T, S>& in, int64_t b, int64_t h, const int64_t* queries, int64_t count,
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
