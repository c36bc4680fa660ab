#pragma once

#include <cstdint>

#include "../../packed.h"
#include "../isa.h"

namespace cpgr {

CPGR_DECLARE_SIMD(
    // One dense mask, row by row, a byte a pixel, non-zero inside: writes all words of `bits`.
    void pack_mask(const uint8_t* mask, PackedGrid grid, uint64_t* bits);

    // Number of pixels and bounding box of a packed mask.
    int64_t measure_mask(const uint64_t* bits, PackedGrid grid, Extent* extent);)

}  // namespace cpgr
