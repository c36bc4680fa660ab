// An instance is filled on a canvas of bits, 64 pixels of a row to a word: every column an edge passes flips one bit,
// each row takes over the one above by exclusive or, and the bits become bytes at the end. No list of crossings is made
// and none is sorted. No template of the standard library may be used here (see box.h).
#include "rasterize_polygons.h"

#include <cstring>

#include "../../rasterize_polygons.h"

#ifdef CPGR_X86
#include <immintrin.h>
#endif

namespace cpgr::CPGR_ISA {

namespace {

constexpr int32_t kColumns = 256;  // columns of an edge at a time

// Rows top..bottom and columns left..right (ends excluded) of the image.
struct Window {
    int32_t top, bottom, left, right;

    inline bool empty() const { return top >= bottom || left >= right; }
    inline int64_t words() const { return (right - left + 63) / 64; }
};

inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

template <class T>
inline GridPoint grid_point(const T* points, int64_t i) {
    return to_grid(static_cast<double>(points[2 * i]), static_cast<double>(points[2 * i + 1]));
}

// Where pixels of a polygon can be; columns in whole words. Fewer than three points enclose nothing.
template <class T>
Window window_of(const T* points, int64_t length, int64_t height, int64_t width) {
    if (length < 3) return {0, 0, 0, 0};
    GridPoint low = grid_point(points, 0), high = low;
    for (int64_t i = 1; i < length; ++i) {
        const GridPoint point = grid_point(points, i);
        low = {smaller(low.x, point.x), smaller(low.y, point.y)};
        high = {larger(high.x, point.x), larger(high.y, point.y)};
    }
    const PolygonEdge across = edge_between(low, high);
    const int32_t rows = static_cast<int32_t>(height), columns = static_cast<int32_t>(width);
    return {smaller(row_below(low.y), rows), smaller(row_below(high.y), rows), across.first / 64 * 64,
            smaller((across.last + 64) / 64 * 64, columns)};
}

inline Window joined(Window a, Window b) {
    if (a.empty()) return b;
    if (b.empty()) return a;
    return {smaller(a.top, b.top), larger(a.bottom, b.bottom), smaller(a.left, b.left), larger(a.right, b.right)};
}

inline Window common(Window a, Window b) {
    return {larger(a.top, b.top), smaller(a.bottom, b.bottom), larger(a.left, b.left), smaller(a.right, b.right)};
}

// Flips the bit of each column that the edge passes, in its first row inside. `bits` holds the rows of the window and
// one more for what lies below it.
void flip(const PolygonEdge& edge, Window window, uint64_t* bits) {
    const int32_t end = smaller(edge.last + 1, window.right);
    const int64_t words = window.words();
    int32_t rows[kColumns];
    for (int32_t first = larger(edge.first, window.left); first < end; first += kColumns) {
        const int32_t count = smaller(end - first, kColumns);
        if (edge.steep)
            for (int32_t i = 0; i < count; ++i) rows[i] = steep_row(edge, first + i);
        else
            for (int32_t i = 0; i < count; ++i) rows[i] = gentle_row(edge, first + i);
        for (int32_t i = 0; i < count; ++i) {
            const int32_t row = smaller(larger(rows[i], window.top), window.bottom) - window.top;
            const int32_t column = first + i - window.left;
            bits[row * words + column / 64] ^= uint64_t{1} << (column % 64);
        }
    }
}

// The polygon's pixels as bits.
template <class T>
void draw(const T* points, int64_t length, Window window, uint64_t* bits) {
    const int64_t words = window.words(), rows = window.bottom - window.top;
    std::memset(bits, 0, sizeof(uint64_t) * words * (rows + 1));
    GridPoint from = grid_point(points, length - 1);
    for (int64_t i = 0; i < length; ++i) {
        const GridPoint to = grid_point(points, i);
        flip(edge_between(from, to), window, bits);
        from = to;
    }
    for (int64_t k = words; k < words * rows; ++k) bits[k] ^= bits[k - words];
}

// The union with a canvas that holds a part of the window `whole`; both begin at a whole word.
void add(const uint64_t* bits, Window part, uint64_t* to, Window whole) {
    const int64_t words = part.words(), stride = whole.words();
    to += (part.top - whole.top) * stride + (part.left - whole.left) / 64;
    for (int32_t row = part.top; row < part.bottom; ++row, bits += words, to += stride)
        for (int64_t k = 0; k < words; ++k) to[k] |= bits[k];
}

// 64 bits to 64 bytes of 0 or 1.
inline void spread(uint64_t bits, uint8_t* out) {
#if defined(__AVX512BW__)
    _mm512_storeu_si512(out, _mm512_maskz_set1_epi8(bits, 1));
#elif defined(__AVX2__)
    // Each byte's source, eight times over.
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    for (int half = 0; half < 2; ++half) {
        const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(bits >> (32 * half)));
        const __m256i own = _mm256_and_si256(_mm256_shuffle_epi8(all, byte_of), bit_of);
        const __m256i one = _mm256_and_si256(_mm256_cmpeq_epi8(own, bit_of), _mm256_set1_epi8(1));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), one);
    }
#else
    for (int i = 0; i < 64; ++i) out[i] = bits >> i & 1;
#endif
}

void write(const uint64_t* bits, Window window, int64_t width, uint8_t* out) {
    const int64_t whole = (window.right - window.left) / 64, rest = (window.right - window.left) % 64;
    for (int32_t row = window.top; row < window.bottom; ++row) {
        uint8_t* to = out + row * width + window.left;
        for (int64_t k = 0; k < whole; ++k) spread(*bits++, to + 64 * k);
        if (rest) {
            uint8_t last[64];
            spread(*bits++, last);
            std::memcpy(to + 64 * whole, last, rest);
        }
    }
}

// Zero outside the window.
void clear_round(Window window, int64_t height, int64_t width, uint8_t* out) {
    if (window.empty()) window = {0, 0, 0, static_cast<int32_t>(width)};
    std::memset(out, 0, window.top * width);
    std::memset(out + window.bottom * width, 0, (height - window.bottom) * width);
    for (int64_t row = window.top; row < window.bottom; ++row) {
        std::memset(out + row * width, 0, window.left);
        std::memset(out + row * width + window.right, 0, width - window.right);
    }
}

}  // namespace

template <class T>
void fill_instance(Polygons<T> polygons, const int64_t* members, int64_t count, int64_t height, int64_t width,
                   bool cleared, uint64_t* scratch, uint8_t* out) {
    const auto points = [&](int64_t m) { return polygons.points + 2 * polygons.starts[members[m]]; };
    const auto window = [&](int64_t m) {
        return window_of(points(m), polygons.lengths[members[m]], height, width);
    };
    Window all = {0, 0, 0, 0};
    for (int64_t m = 0; m < count; ++m) all = joined(all, window(m));
    if (!cleared) clear_round(all, height, width, out);
    if (all.empty()) return;

    // A canvas of more words than the scratch holds is filled in upright strips.
    const int64_t rows = all.bottom - all.top, fit = kStripWords / (rows + 1);
    const int32_t strip = static_cast<int32_t>(64 * larger(1, static_cast<int32_t>(fit)));
    uint64_t *bits = scratch, *more = scratch + fill_scratch_words(height) / 2;
    for (int32_t left = all.left; left < all.right; left += strip) {
        const Window part = {all.top, all.bottom, left, smaller(left + strip, all.right)};
        if (count == 1) {
            draw(points(0), polygons.lengths[members[0]], part, bits);
        } else {
            std::memset(bits, 0, sizeof(uint64_t) * part.words() * rows);
            for (int64_t m = 0; m < count; ++m) {
                const Window own = common(window(m), part);
                if (own.empty()) continue;
                draw(points(m), polygons.lengths[members[m]], own, more);
                add(more, own, bits, part);
            }
        }
        write(bits, part, width, out);
    }
}

template void fill_instance<float>(Polygons<float>, const int64_t*, int64_t, int64_t, int64_t, bool, uint64_t*,
                                   uint8_t*);
template void fill_instance<double>(Polygons<double>, const int64_t*, int64_t, int64_t, int64_t, bool, uint64_t*,
                                    uint8_t*);

}  // namespace cpgr::CPGR_ISA
