#include "rasterize_polygons.h"

#include <memory>
#include <vector>

#include "../rasterize_polygons.h"
#include "parallel.h"
#include "simd/rasterize_polygons.h"

namespace cpgr {
namespace {

// Below this many pixels a second thread costs more than it saves.
constexpr int64_t kPixelsPerThread = 1 << 19;

template <class T>
bool sound(const T* points, int64_t total, int64_t start, int64_t length) {
    if (start < 0 || length < 0 || start > total || length > total - start) return false;
    for (int64_t i = 2 * start; i < 2 * (start + length); ++i)
        if (!within_limit(static_cast<double>(points[i]))) return false;
    return true;
}

}  // namespace

template <class T>
int64_t rasterize_polygons(const T* points, int64_t total, const int64_t* starts, const int64_t* lengths,
                           const int64_t* instances, int64_t polygons, int64_t count, int64_t height, int64_t width,
                           bool cleared, uint8_t* out, int threads) {
    for (int64_t p = 0; p < polygons; ++p)
        if (instances[p] < 0 || instances[p] >= count || !sound(points, total, starts[p], lengths[p])) return p;
    if (height * width == 0) return -1;

    // The polygons of instance i are members[ends[i - 1]..ends[i]).
    std::vector<int64_t> ends(count + 1, 0), members(polygons);
    for (int64_t p = 0; p < polygons; ++p) ++ends[instances[p] + 1];
    for (int64_t i = 0; i < count; ++i) ends[i + 1] += ends[i];
    for (int64_t p = 0; p < polygons; ++p) members[ends[instances[p]]++] = p;

    const auto fill = CPGR_SIMD(fill_instance<T>);
    const int64_t parts = std::min<int64_t>(threads, count * height * width / kPixelsPerThread + 1);
    const int64_t words = fill_scratch_words(height);
    const std::unique_ptr<uint64_t[]> scratch(new uint64_t[parts * words]);
    parallel_for(parts, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part)
            for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
                const int64_t begin = i ? ends[i - 1] : 0;
                fill({points, starts, lengths}, members.data() + begin, ends[i] - begin, height, width, cleared,
                     scratch.get() + part * words, out + i * height * width);
            }
    });
    return -1;
}

#define CPGR_INSTANTIATE(T)                                                                                         \
    template int64_t rasterize_polygons<T>(const T*, int64_t, const int64_t*, const int64_t*, const int64_t*,       \
                                           int64_t, int64_t, int64_t, int64_t, bool, uint8_t*, int);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr
