// The functions of csrc/cpu/mask_iou.h on the GPU: asynchronous, contiguous device arrays.
#pragma once

#include "../packed.h"
#include "launch.h"

namespace cpgr::cuda {

void mask_iou(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
              double* out, Place place);

void mask_iou_pairs(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
                    double* out, Place place);

}  // namespace cpgr::cuda
