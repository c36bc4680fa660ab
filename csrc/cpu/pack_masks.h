// Masks of one bit a pixel, in the order of packed.h, from a byte a pixel or from COCO's run lengths. Each mask comes
// with its number of pixels and their bounding box. Contiguous arrays; results are written whole.
#pragma once

#include <cstdint>

#include "../packed.h"

namespace cpgr {

// masks [count, height, width], non-zero inside.
void pack_masks(const uint8_t* masks, int64_t count, int64_t height, int64_t width, uint64_t* bits, int64_t* areas,
                Extent* boxes, int threads);

// Mask k is the bytes starts[k]..starts[k + 1] of `runs`: 64-bit numbers where numbers[k], else COCO's text. Writes
// an RleFault for each mask to `faults`; the results of a faulty mask mean nothing.
void pack_rle(const uint8_t* runs, const int64_t* starts, const uint8_t* numbers, int64_t count, int64_t height,
              int64_t width, uint64_t* bits, int64_t* areas, Extent* boxes, uint8_t* faults, int threads);

}  // namespace cpgr
