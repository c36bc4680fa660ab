#include "nms.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../rounding.h"
#include "argsort.h"
#include "simd/nms.h"

namespace cpgr {
namespace {

template <class T>
using Buffer = std::unique_ptr<T[]>;  // not filled, unlike a std::vector

// Indices by descending score.
template <class S>
Buffer<int32_t> order_of(const S* scores, int64_t count) {
    const auto sorted = stable_argsort(count, [=](int64_t i) { return descending_key(scores[i]); });
    Buffer<int32_t> order(new int32_t[count]);
    for (int64_t k = 0; k < count; ++k) order[k] = sorted[k].index;
    return order;
}

// A number from 0 for each class that occurs; returns how many numbers there are.
int64_t number_classes(const int64_t* idxs, int64_t count, int32_t* classes) {
    int64_t least = idxs[0], largest = idxs[0];
    for (int64_t i = 1; i < count; ++i) {
        least = std::min(least, idxs[i]);
        largest = std::max(largest, idxs[i]);
    }
    const uint64_t range = static_cast<uint64_t>(largest) - static_cast<uint64_t>(least);
    if (range < static_cast<uint64_t>(count / 2 + 128)) {
        for (int64_t i = 0; i < count; ++i) classes[i] = static_cast<int32_t>(idxs[i] - least);
        return static_cast<int64_t>(range) + 1;
    }
    const auto sorted = stable_argsort(count, [=](int64_t i) { return ascending_key(idxs[i]); });
    int32_t number = 0;
    for (int64_t k = 0; k < count; ++k) {
        number += k > 0 && sorted[k].key != sorted[k - 1].key;
        classes[sorted[k].index] = number;
    }
    return int64_t{number} + 1;
}

template <class T>
struct Scratch {
    explicit Scratch(int64_t count)
        : stride((count + Columns<T>::kSlack + 15) / 16 * 16),
          values(new T[10 * stride + 16]),
          integers(new int32_t[2 * stride + count / 2 + 2]),
          fallen(new uint64_t[count / 64 + 1]) {}

    Columns<T> columns(int which) const {
        const auto address = reinterpret_cast<std::uintptr_t>(values.get());
        T* x1 = reinterpret_cast<T*>((address + 63) / 64 * 64) + which * 5 * stride;
        return {x1, x1 + stride, x1 + 2 * stride, x1 + 3 * stride, x1 + 4 * stride};
    }

    Suppression<T> problem(T threshold) const {
        int32_t* places = integers.get();
        return {columns(0), places, 0, threshold, 0, columns(1), places + stride, places + 2 * stride, fallen.get()};
    }

    int64_t stride;
    Buffer<T> values;
    Buffer<int32_t> integers;
    Buffer<uint64_t> fallen;
};

// The boxes at `places` of the order, or from its beginning.
template <class T>
void load(const T* boxes, const int32_t* order, const int32_t* places, int64_t count, int64_t most,
          Suppression<T>& problem) {
    problem.count = count;
    problem.most = most;
    const Columns<T>& to = problem.boxes;
    for (int64_t k = 0; k < count; ++k) {
        const int32_t place = places ? places[k] : static_cast<int32_t>(k);
        const T* box = boxes + int64_t{4} * order[place];
        to.x1[k] = box[0];
        to.y1[k] = box[1];
        to.x2[k] = box[2];
        to.y2[k] = box[3];
        to.area[k] = (box[2] - box[0]) * (box[3] - box[1]);
        problem.places[k] = place;
    }
}

}  // namespace

template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep) {
    if (count == 0) return 0;
    if (count > std::numeric_limits<int32_t>::max()) throw std::length_error("nms: more than 2^31 - 1 boxes");
    const auto kernel = CPGR_SIMD(suppress<T>);
    const Scratch<T> scratch(count);
    Suppression<T> problem = scratch.problem(round_down<T>(iou_threshold));
    const Buffer<int32_t> order = order_of(scores, count);
    const Buffer<int32_t> kept(new int32_t[count]);

    if (!idxs) {
        load(boxes, order.get(), nullptr, count, count, problem);
        const int64_t left = kernel(problem, kept.get());
        for (int64_t k = 0; k < left; ++k) keep[k] = order[kept[k]];
        return left;
    }

    // Places in the order of scores, class by class, each class still best first.
    const Buffer<int32_t> classes(new int32_t[2 * count]);
    const int64_t class_count = number_classes(idxs, count, classes.get());
    std::vector<int32_t> ends(class_count + 1, 0);
    for (int64_t i = 0; i < count; ++i) ++ends[classes[i] + 1];
    for (int64_t c = 0; c < class_count; ++c) ends[c + 1] += ends[c];
    int32_t* places = classes.get() + count;
    for (int64_t place = 0; place < count; ++place)
        places[ends[classes[order[place]]]++] = static_cast<int32_t>(place);

    std::vector<char> stays(count, 0);
    int64_t begin = 0;
    for (int64_t c = 0; c < class_count; ++c) {
        const int64_t size = ends[c] - begin;
        if (size > 0) {
            load(boxes, order.get(), places + begin, size, size, problem);
            const int64_t left = kernel(problem, kept.get());
            for (int64_t k = 0; k < left; ++k) stays[kept[k]] = 1;
        }
        begin = ends[c];
    }
    int64_t left = 0;
    for (int64_t place = 0; place < count; ++place) {
        keep[left] = order[place];
        left += stays[place];
    }
    return left;
}

#define CPGR_INSTANTIATE(T, S) \
    template int64_t nms<T, S>(const T*, const S*, const int64_t*, int64_t, double, int64_t*);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, double)
CPGR_INSTANTIATE(double, float)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
