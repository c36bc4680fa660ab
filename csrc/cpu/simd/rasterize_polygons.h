#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// Polygon p has the `lengths[p]` points from points[starts[p]] on, each x, y.
template <class T>
struct Polygons {
    const T* points;
    const int64_t* starts;
    const int64_t* lengths;
};

// Words of scratch for fill_instance: two bit canvases of `kStripWords`, or of a word a row where that is more.
constexpr int64_t kStripWords = 1 << 15;
static inline int64_t fill_scratch_words(int64_t height) {
    return 2 * (height + 1 > kStripWords ? height + 1 : kStripWords);
}

CPGR_DECLARE_SIMD(
    // Writes the union of the polygons members[0..count) to out [height, width], a byte a pixel. `cleared`: out is zero
    // already and only what is inside is written.
    template <class T>
    void fill_instance(Polygons<T> polygons, const int64_t* members, int64_t count, int64_t height, int64_t width,
                       bool cleared, uint64_t* scratch, uint8_t* out);)

}  // namespace cpgr
