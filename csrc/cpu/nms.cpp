#include "nms.h"

#include <limits>
#include <stdexcept>
#include <vector>

#include "../rounding.h"
#include "argsort.h"
#include "simd/nms.h"

namespace cpgr {
namespace {

template <class T>
class Columns {
public:
    explicit Columns(int64_t count) : stride_(count + Running<T>::kSlack), values_(stride_ * 5), place_(stride_) {}

    // Fills the columns with the boxes at `places` of the order of scores.
    Running<T> load(const T* boxes, const std::vector<int32_t>& order, const int32_t* places, int64_t count) {
        T* x1 = values_.data();
        const Running<T> columns = {x1, x1 + stride_, x1 + 2 * stride_, x1 + 3 * stride_, x1 + 4 * stride_,
                                    place_.data()};
        for (int64_t k = 0; k < count; ++k) {
            const int32_t place = places ? places[k] : static_cast<int32_t>(k);
            const T* box = boxes + int64_t{4} * order[place];
            columns.x1[k] = box[0];
            columns.y1[k] = box[1];
            columns.x2[k] = box[2];
            columns.y2[k] = box[3];
            columns.area[k] = (box[2] - box[0]) * (box[3] - box[1]);
            columns.place[k] = place;
        }
        return columns;
    }

private:
    int64_t stride_;
    std::vector<T> values_;
    std::vector<int32_t> place_;
};

template <class S>
std::vector<int32_t> order_of(const S* scores, int64_t count) {
    std::vector<decltype(descending_key(S{}))> keys(count);
    for (int64_t i = 0; i < count; ++i) keys[i] = descending_key(scores[i]);
    return stable_argsort(keys);
}

}  // namespace

template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep) {
    if (count == 0) return 0;
    if (count > std::numeric_limits<int32_t>::max()) throw std::length_error("nms: more than 2^31 - 1 boxes");
    const auto kernel = CPGR_SIMD(suppress<T>);
    const T threshold = round_down<T>(iou_threshold);
    const std::vector<int32_t> order = order_of(scores, count);
    Columns<T> columns(count);
    std::vector<int32_t> kept(count);

    if (!idxs) {
        const int64_t left = kernel(columns.load(boxes, order, nullptr, count), count, threshold, kept.data());
        for (int64_t k = 0; k < left; ++k) keep[k] = order[kept[k]];
        return left;
    }

    // Places in the order of scores, sorted by idx: one run a class, each still best first.
    std::vector<uint64_t> keys(count);
    for (int64_t place = 0; place < count; ++place) keys[place] = ascending_key(idxs[order[place]]);
    const std::vector<int32_t> places = stable_argsort(keys);
    std::vector<char> stays(count, 0);
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        while (end < count && keys[places[end]] == keys[places[begin]]) ++end;
        const Running<T> running = columns.load(boxes, order, places.data() + begin, end - begin);
        const int64_t left = kernel(running, end - begin, threshold, kept.data());
        for (int64_t k = 0; k < left; ++k) stays[kept[k]] = 1;
    }
    int64_t left = 0;
    for (int64_t place = 0; place < count; ++place)
        if (stays[place]) keep[left++] = order[place];
    return left;
}

#define CPGR_INSTANTIATE(T, S) \
    template int64_t nms<T, S>(const T*, const S*, const int64_t*, int64_t, double, int64_t*);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, double)
CPGR_INSTANTIATE(double, float)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
