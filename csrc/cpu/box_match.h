// The best partner of every box by intersection over union, without the matrix.
#pragma once

#include <cstdint>

namespace cpgr {

// boxes1 [batch, rows, 4] against boxes2 [batch, count, 4]: iou1 and index1 [batch, rows], iou2 and index2
// [batch, count]. Ties go to the lowest index; NaN is passed over; 0 and -1 where there is nothing else.
template <class T>
void box_match(const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* iou1, int64_t* index1,
               T* iou2, int64_t* index2, int threads);

}  // namespace cpgr
