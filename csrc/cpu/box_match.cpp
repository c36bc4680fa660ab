#include "box_match.h"

#include <limits>
#include <vector>

#include "../box.h"
#include "columns.h"
#include "parallel.h"
#include "simd/box_match.h"

namespace cpgr {
namespace {

// Below this many pairs a second thread costs more than it saves.
constexpr int64_t kPairsPerThread = 1 << 16;

template <class T>
Box<T> box_at(const T* boxes, int64_t i) {
    return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

// No IoU was above zero: the first that is zero and not NaN. That is nearly always the first of all.
template <class T>
void settle_zeros(const T* boxes, int64_t rows, const T* others, int64_t count, int64_t* index) {
    for (int64_t i = 0; i < rows; ++i) {
        const Box<T> box = box_at(boxes, i);
        const T area = area_of(box);
        if (index[i] >= 0 || area != area) continue;
        for (int64_t j = 0; j < count && index[i] < 0; ++j) {
            const Box<T> other = box_at(others, j);
            const T iou = iou_of(box, area, other, area_of(other));
            if (iou == iou) index[i] = j;
        }
    }
}

// One image, by `parts` threads: each has its own bests of the columns over a run of rows.
template <class T>
void match_image(const T* boxes1, const T* boxes2, int64_t rows, int64_t count, T* iou1, int64_t* index1, T* iou2,
                 int64_t* index2, int64_t parts) {
    const auto kernel = CPGR_SIMD(match_rows<T>);
    const int64_t padded = (count + kMatchPadding - 1) / kMatchPadding * kMatchPadding;
    std::vector<T> columns(padded * 5), best(parts * padded);
    std::vector<int64_t> index(parts * count, -1);
    to_columns(boxes2, count, columns.data(), padded);
    std::fill(iou1, iou1 + rows, T(0));
    std::fill(index1, index1 + rows, int64_t{-1});
    for (int64_t part = 0; part < parts; ++part)
        std::fill(best.begin() + part * padded + count, best.begin() + (part + 1) * padded,
                  std::numeric_limits<T>::infinity());

    parallel_for(parts, 1, static_cast<int>(parts), [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
            kernel(boxes1, rows * part / parts, rows * (part + 1) / parts, columns.data(), padded, padded, iou1, index1,
                   best.data() + part * padded, index.data() + part * count);
    });
    std::copy_n(best.begin(), count, iou2);
    std::copy_n(index.begin(), count, index2);
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t j = 0; j < count; ++j)
            if (best[part * padded + j] > iou2[j]) {
                iou2[j] = best[part * padded + j];
                index2[j] = index[part * count + j];
            }
    settle_zeros(boxes1, rows, boxes2, count, index1);
    settle_zeros(boxes2, count, boxes1, rows, index2);
}

}  // namespace

template <class T>
void box_match(const T* boxes1, const T* boxes2, int64_t batch, int64_t rows, int64_t count, T* iou1, int64_t* index1,
               T* iou2, int64_t* index2, int threads) {
    // Threads share images out first, then the rows of one.
    const int64_t useful = std::max<int64_t>(std::min<int64_t>(threads, rows * count / kPairsPerThread), 1);
    const int64_t parts = batch > 1 ? 1 : std::min(useful, std::max<int64_t>(rows, 1));
    const int64_t grain = kPairsPerThread / std::max<int64_t>(rows * count, 1) + 1;
    parallel_for(batch, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            match_image(boxes1 + b * rows * 4, boxes2 + b * count * 4, rows, count, iou1 + b * rows, index1 + b * rows,
                        iou2 + b * count, index2 + b * count, parts);
    });
}

template void box_match<float>(const float*, const float*, int64_t, int64_t, int64_t, float*, int64_t*, float*,
                               int64_t*, int);
template void box_match<double>(const double*, const double*, int64_t, int64_t, int64_t, double*, int64_t*, double*,
                                int64_t*, int);

}  // namespace cpgr
