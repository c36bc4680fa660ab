// Masks of instances that are given as polygons, by COCO's rule (see csrc/rasterize_polygons.h).
#pragma once

#include <cstdint>

namespace cpgr {

// Polygon p belongs to instance instances[p] and has the lengths[p] points (x, y) from points[starts[p]] on, of
// `total`. out [count, height, width] gets a byte a pixel, 1 in the union of an instance's polygons; `cleared`: it is
// zero already. Returns -1, or the first polygon that names points or an instance that do not exist or whose
// coordinates are not within the limit; nothing is written then.
template <class T>
int64_t rasterize_polygons(const T* points, int64_t total, const int64_t* starts, const int64_t* lengths,
                           const int64_t* instances, int64_t polygons, int64_t count, int64_t height, int64_t width,
                           bool cleared, uint8_t* out, int threads);

}  // namespace cpgr
