// Masks of instances that are given as polygons, by COCO's rule, on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "launch.h"

namespace cpgr::cuda {

// As csrc/cpu/rasterize_polygons.h, with the polygons of instance i at members[ends[i]..ends[i + 1]). Nothing can be
// reported from here: a polygon whose points do not exist or are not within the limit counts for nothing.
template <class T>
void rasterize_polygons(const T* points, int64_t total, const int64_t* starts, const int64_t* lengths,
                        const int64_t* members, const int64_t* ends, int64_t count, int64_t height, int64_t width,
                        uint8_t* out, Place place);

}  // namespace cpgr::cuda
