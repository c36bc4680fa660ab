// The functions of csrc/cpu/box_match.h on the GPU: asynchronous, contiguous device arrays. The result does not depend
// on the order in which threads run.
#pragma once

#include "launch.h"

namespace cpgr::cuda {

// `keys`: scratch, one for each box of either side.
void box_match(const float* boxes1, const float* boxes2, int64_t batch, int64_t rows, int64_t count, uint64_t* keys,
               float* iou1, int64_t* index1, float* iou2, int64_t* index2, Place place);

void box_match(const double* boxes1, const double* boxes2, int64_t batch, int64_t rows, int64_t count, double* iou1,
               int64_t* index1, double* iou2, int64_t* index2, Place place);

}  // namespace cpgr::cuda
