// A tile of the IoU matrix at a time, which stays in the L1 cache, and a scan of it. New bests are rare (about log N a
// box), so the scan is two comparisons a register and a branch that is seldom taken.
#include "box_match.h"

#include "box_iou.h"
#include "vec.h"

namespace cpgr::CPGR_ISA {

template <class T>
static inline void scan_row(const T* row, int64_t size, int64_t i, int64_t first, T* iou1, int64_t* index1, T* iou2,
                            int64_t* index2) {
    using V = Vec<T>;
    V best = V::all(*iou1);
    for (int64_t j = 0; j < size; j += V::lanes) {
        const V iou = V::load(row + j);
        uint32_t better = above(iou, best) | above(iou, V::load(iou2 + j));
        if (!better) continue;
        for (; better; better &= better - 1) {
            const int64_t at = j + __builtin_ctz(better);
            if (row[at] > *iou1) {
                *iou1 = row[at];
                *index1 = first + at;
            }
            if (row[at] > iou2[at]) {
                iou2[at] = row[at];
                index2[at] = i;
            }
        }
        best = V::all(*iou1);
    }
}

template <class T>
void match_rows(const T* boxes, int64_t begin, int64_t end, const T* columns, int64_t stride, int64_t count, T* iou1,
                int64_t* index1, T* iou2, int64_t* index2) {
    constexpr int64_t width = 2048 / sizeof(T), height = 4;
    static_assert(width % kMatchPadding == 0 && kMatchPadding % Vec<T>::lanes == 0, "whole registers");
    alignas(64) T tile[height * width];
    for (int64_t first = 0; first < count; first += width) {
        const int64_t size = count - first < width ? count - first : width;
        for (int64_t i = begin; i < end; i += height) {
            const int64_t stop = i + height < end ? i + height : end;
            measure_rows(Iou<T>{}, boxes, i, stop, columns + first, stride, size, tile, width);
            for (int64_t k = i; k < stop; ++k)
                scan_row(tile + (k - i) * width, size, k, first, iou1 + k, index1 + k, iou2 + first, index2 + first);
        }
    }
}

template void match_rows<float>(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*, int64_t*,
                                float*, int64_t*);
template void match_rows<double>(const double*, int64_t, int64_t, const double*, int64_t, int64_t, double*, int64_t*,
                                 double*, int64_t*);

}  // namespace cpgr::CPGR_ISA
