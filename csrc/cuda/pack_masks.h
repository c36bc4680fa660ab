// The dense part of csrc/cpu/pack_masks.h on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "../packed.h"
#include "launch.h"

namespace cpgr::cuda {

void pack_masks(const uint8_t* masks, int64_t count, int64_t height, int64_t width, uint64_t* bits, int64_t* areas,
                Extent* boxes, Place place);

}  // namespace cpgr::cuda
