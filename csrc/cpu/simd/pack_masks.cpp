// From a byte a pixel to a bit a pixel. No template of the standard library may be used here (see box.h).
#include "pack_masks.h"

#include "lines.h"

namespace cpgr::CPGR_ISA {
namespace {

// Bit k of the word: byte k is not zero.
#if defined(__AVX512BW__)

static inline uint64_t word_of(const uint8_t* bytes) {
    const __m512i v = _mm512_loadu_si512(bytes);
    return _mm512_test_epi8_mask(v, v);
}

static inline uint64_t part_of_word(const uint8_t* bytes, int64_t count) {
    const __m512i v = _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, bytes);
    return _mm512_test_epi8_mask(v, v);
}

#else

#if defined(__AVX2__)

static inline uint64_t word_of(const uint8_t* bytes) {
    const __m256i* p = reinterpret_cast<const __m256i*>(bytes);
    const __m256i zero = _mm256_setzero_si256();
    const uint32_t low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(p), zero));
    const uint32_t high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(p + 1), zero));
    return ~(low | uint64_t{high} << 32);
}

#else

static inline uint64_t word_of(const uint8_t* bytes) {
    constexpr uint64_t low_bits = 0x7f7f7f7f7f7f7f7fu;
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) {
        uint64_t eight;  // little-endian
        __builtin_memcpy(&eight, bytes + 8 * k, sizeof(eight));
        // The top bit of each byte says whether it is not zero; the product gathers the eight.
        const uint64_t top = (((eight & low_bits) + low_bits) | eight) & ~low_bits;
        word |= (((top >> 7) * 0x0102040810204080u) >> 56) << (8 * k);
    }
    return word;
}

#endif

static inline uint64_t part_of_word(const uint8_t* bytes, int64_t count) {
    uint8_t padded[kTileColumns] = {};
    for (int64_t k = 0; k < count; ++k) padded[k] = bytes[k];
    return word_of(padded);
}

#endif

}  // namespace

void pack_mask(const uint8_t* mask, PackedGrid grid, uint64_t* bits) {
    const int64_t whole = grid.width / kTileColumns, rest = grid.width % kTileColumns;
    // Row by row, so that memory is read in order.
    for (int64_t y = 0; y < grid.height; ++y) {
        uint64_t* word = bits + (y / kTileRows * grid.columns) * kTileRows + y % kTileRows;
        for (int64_t x = 0; x < whole; ++x, mask += kTileColumns, word += kTileRows) *word = word_of(mask);
        if (rest) *word = part_of_word(mask, rest);
        mask += rest;
    }
    for (int64_t y = grid.height; y < grid.rows * kTileRows; ++y)
        for (int64_t x = 0; x < grid.columns; ++x)
            bits[(y / kTileRows * grid.columns + x) * kTileRows + y % kTileRows] = 0;
}

int64_t measure_mask(const uint64_t* bits, PackedGrid grid, Extent* extent) {
    *extent = {0, 0, 0, 0};
    if (grid.words() == 0) return 0;
    Counter counter;
    int64_t top = -1, bottom = 0, left = 0, right = 0;
    for (int64_t y = 0; y < grid.rows; ++y) {
        const uint64_t* row = bits + y * grid.columns * kTileRows;
        Line joint = Line::load(row);
        counter.add(joint);
        for (int64_t x = 1; x < grid.columns; ++x) {
            const Line line = Line::load(row + x * kTileRows);
            counter.add(line);
            joint = joint | line;
        }
        uint64_t by_row[kTileRows];
        joint.store(by_row);
        for (int r = 0; r < kTileRows; ++r) {
            if (!by_row[r]) continue;
            if (top < 0) top = y * kTileRows + r;
            bottom = y * kTileRows + r + 1;
        }
    }
    if (top < 0) return 0;
    // The sides need the outermost columns of tiles that hold anything, as a rule the first ones looked at.
    const int64_t first = top / kTileRows, last = (bottom - 1) / kTileRows;
    const auto columns_at = [&](int64_t x) {
        uint64_t any = 0;
        for (int64_t y = first; y <= last; ++y)
            for (int r = 0; r < kTileRows; ++r) any |= bits[(y * grid.columns + x) * kTileRows + r];
        return any;
    };
    for (int64_t x = 0; x < grid.columns; ++x)
        if (const uint64_t any = columns_at(x)) {
            left = x * kTileColumns + __builtin_ctzll(any);
            break;
        }
    for (int64_t x = grid.columns - 1; x >= 0; --x)
        if (const uint64_t any = columns_at(x)) {
            right = (x + 1) * kTileColumns - __builtin_clzll(any);
            break;
        }
    *extent = {static_cast<int32_t>(left), static_cast<int32_t>(top), static_cast<int32_t>(right),
               static_cast<int32_t>(bottom)};
    return counter.total();
}

}  // namespace cpgr::CPGR_ISA
