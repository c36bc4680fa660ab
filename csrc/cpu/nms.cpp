#include "nms.h"

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "../rounding.h"
#include "argsort.h"
#include "parallel.h"
#include "simd/nms.h"

namespace cpgr {
namespace {

template <class T>
using Buffer = std::unique_ptr<T[]>;  // not filled, unlike a std::vector

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
    using Item = Keyed<uint64_t>;
    const Buffer<Item> sorted(new Item[2 * count]);
    for (int64_t i = 0; i < count; ++i) sorted[i] = {ascending_key(idxs[i]), static_cast<int32_t>(i)};
    stable_sort(sorted.get(), sorted.get() + count, count);
    int32_t number = 0;
    for (int64_t k = 0; k < count; ++k) {
        number += k > 0 && sorted[k].key != sorted[k - 1].key;
        classes[sorted[k].index] = number;
    }
    return int64_t{number} + 1;
}

// Room for one image of up to `count` boxes, used for one after another.
template <class T>
struct Scratch {
    Scratch(int64_t count, bool batched)
        : stride((count + Columns<T>::kSlack + 15) / 16 * 16),
          values(new T[10 * stride + 16]),
          integers(new int32_t[2 * stride + count / 2 + 2]),
          fallen(new uint64_t[count / 64 + 1]),
          kept(new int32_t[count]),
          classes(batched ? new int32_t[2 * count] : nullptr),
          stays(batched ? new char[count] : nullptr) {}

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
    Buffer<int32_t> kept;
    Buffer<int32_t> classes;
    Buffer<char> stays;
};

// The boxes at `places` of the order, or from its beginning.
template <class T, class Order>
void load(const T* boxes, const Order& order, const int32_t* places, int64_t count, int64_t most,
          Suppression<T>& problem) {
    problem.count = count;
    problem.most = most;
    const Columns<T>& to = problem.boxes;
    for (int64_t k = 0; k < count; ++k) {
        const int32_t place = places ? places[k] : static_cast<int32_t>(k);
        const T* box = boxes + int64_t{4} * order[place].index;
        to.x1[k] = box[0];
        to.y1[k] = box[1];
        to.x2[k] = box[2];
        to.y2[k] = box[3];
        to.area[k] = (box[2] - box[0]) * (box[3] - box[1]);
        problem.places[k] = place;
    }
}

// The boxes order[0 .. count).index of one image.
template <class T, class Order>
int64_t nms_of_one_class(const T* boxes, const Order& order, int64_t count, T threshold, int64_t most,
                         const Scratch<T>& scratch, int64_t* keep) {
    Suppression<T> problem = scratch.problem(threshold);
    load(boxes, order, nullptr, count, most, problem);
    const int64_t left = CPGR_SIMD(suppress<T>)(problem, scratch.kept.get());
    for (int64_t k = 0; k < left; ++k) keep[k] = order[scratch.kept[k]].index;
    return left;
}

// `boxes_of_image`: how many entries `idxs` has.
template <class T, class Order>
int64_t nms_of_classes(const T* boxes, const int64_t* idxs, int64_t boxes_of_image, const Order& order, int64_t count,
                       T threshold, int64_t most, const Scratch<T>& scratch, int64_t* keep) {
    if (count == 0) return 0;
    // Places in the order, class by class, each class still best first.
    int32_t *classes = scratch.classes.get(), *places = classes + boxes_of_image;
    const int64_t class_count = number_classes(idxs, boxes_of_image, classes);
    std::vector<int32_t> ends(class_count + 1, 0);
    for (int64_t place = 0; place < count; ++place) ++ends[classes[order[place].index] + 1];
    for (int64_t c = 0; c < class_count; ++c) ends[c + 1] += ends[c];
    for (int64_t place = 0; place < count; ++place)
        places[ends[classes[order[place].index]]++] = static_cast<int32_t>(place);

    const auto kernel = CPGR_SIMD(suppress<T>);
    Suppression<T> problem = scratch.problem(threshold);
    char* stays = scratch.stays.get();
    std::fill(stays, stays + count, char{0});
    int64_t begin = 0;
    for (int64_t c = 0; c < class_count; ++c) {
        const int64_t size = ends[c] - begin;
        if (size == 0) continue;
        load(boxes, order, places + begin, size, most, problem);
        const int64_t left = kernel(problem, scratch.kept.get());
        for (int64_t k = 0; k < left; ++k) stays[scratch.kept[k]] = 1;
        begin = ends[c];
    }
    int64_t left = 0;
    for (int64_t place = 0; place < count && left < most; ++place) {
        keep[left] = order[place].index;
        left += stays[place];
    }
    return left;
}

// The first `count` boxes of an image, of them those that `admits(score)`.
template <class T, class S, class Admits>
int64_t nms_of_image(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, T threshold, int64_t most,
                     const Scratch<T>& scratch, int64_t* keep, const Admits& admits) {
    if (count == 0) return 0;
    using Item = Keyed<decltype(descending_key(S{}))>;
    const Buffer<Item> order(new Item[2 * count]);
    int64_t admitted = 0;
    for (int64_t i = 0; i < count; ++i) {
        order[admitted] = {descending_key(scores[i]), static_cast<int32_t>(i)};
        admitted += admits(scores[i]);
    }
    stable_sort(order.get(), order.get() + count, admitted);
    return idxs ? nms_of_classes(boxes, idxs, count, order, admitted, threshold, most, scratch, keep)
                : nms_of_one_class(boxes, order, admitted, threshold, most, scratch, keep);
}

void check_count(int64_t count) {
    if (count > std::numeric_limits<int32_t>::max()) throw std::length_error("nms: more than 2^31 - 1 boxes");
}

}  // namespace

template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep) {
    check_count(count);
    return nms_of_image(boxes, scores, idxs, count, round_down<T>(iou_threshold), count,
                        Scratch<T>(count, idxs != nullptr), keep, [](S) { return true; });
}

template <class T, class S>
void nms_padded(const T* boxes, const S* scores, const int64_t* idxs, const int64_t* counts, int64_t batch,
                int64_t count, double iou_threshold, const double* score_threshold, int64_t most, int64_t* indices,
                int64_t* kept, int threads) {
    check_count(count);
    const T threshold = round_down<T>(iou_threshold);
    std::exception_ptr failure;
    std::mutex guard;
    parallel_for(batch, 1, threads, [&](int64_t begin, int64_t end) {
        try {
            const Scratch<T> scratch(count, idxs != nullptr);
            for (int64_t b = begin; b < end; ++b) {
                const int64_t real = counts ? std::clamp<int64_t>(counts[b], 0, count) : count;
                const auto image = [&](const auto& admits) {
                    return nms_of_image(boxes + b * count * 4, scores + b * count, idxs ? idxs + b * count : nullptr,
                                        real, threshold, most, scratch, indices + b * most, admits);
                };
                if (score_threshold) {
                    const S least = static_cast<S>(*score_threshold);
                    kept[b] = image([=](S score) { return score > least; });
                } else {
                    kept[b] = image([](S) { return true; });
                }
                std::fill(indices + b * most + kept[b], indices + (b + 1) * most, int64_t{-1});
            }
        } catch (...) {  // no room; nothing may leave a thread
            const std::lock_guard<std::mutex> lock(guard);
            failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

#define CPGR_INSTANTIATE(T, S)                                                                                   \
    template int64_t nms<T, S>(const T*, const S*, const int64_t*, int64_t, double, int64_t*);                    \
    template void nms_padded<T, S>(const T*, const S*, const int64_t*, const int64_t*, int64_t, int64_t, double,  \
                                   const double*, int64_t, int64_t*, int64_t*, int);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, double)
CPGR_INSTANTIATE(double, float)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
