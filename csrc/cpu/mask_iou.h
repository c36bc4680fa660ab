// Intersection over union of packed masks (packed.h), as pycocotools has it: masks that share no pixel give 0, also
// two empty ones, and against a crowd the union is the area of the first mask alone. Contiguous arrays.
#pragma once

#include <cstdint>

#include "../packed.h"

namespace cpgr {

// out [a.count, b.count]; `crowd` [b.count] or null.
void mask_iou(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
              double* out, int threads);

// Pair by pair, as many of `b` as of `a`: out [a.count]; `crowd` [a.count] or null.
void mask_iou_pairs(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
                    double* out, int threads);

}  // namespace cpgr
