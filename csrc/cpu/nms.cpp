#include "nms.h"

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

template <class S>
Buffer<int32_t> order_of(const S* scores, int64_t count) {
    using Item = Keyed<decltype(descending_key(S{}))>;
    const Buffer<Item> items(new Item[2 * count]);
    for (int64_t i = 0; i < count; ++i) items[i] = {descending_key(scores[i]), static_cast<int32_t>(i)};
    const Item* sorted = stable_sort(items.get(), items.get() + count, count);
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
    if (range < static_cast<uint64_t>(count / 4 + 128)) {
        for (int64_t i = 0; i < count; ++i) classes[i] = static_cast<int32_t>(idxs[i] - least);
        return static_cast<int64_t>(range) + 1;
    }
    using Item = Keyed<uint64_t>;
    const Buffer<Item> items(new Item[2 * count]);
    for (int64_t i = 0; i < count; ++i) items[i] = {ascending_key(idxs[i]), static_cast<int32_t>(i)};
    const Item* sorted = stable_sort(items.get(), items.get() + count, count);
    int32_t number = 0;
    for (int64_t k = 0; k < count; ++k) {
        number += k > 0 && sorted[k].key != sorted[k - 1].key;
        classes[sorted[k].index] = number;
    }
    return int64_t{number} + 1;
}

}  // namespace

template <class T, class S>
int64_t nms(const T* boxes, const S* scores, const int64_t* idxs, int64_t count, double iou_threshold, int64_t* keep) {
    if (count == 0) return 0;
    if (count > std::numeric_limits<int32_t>::max()) throw std::length_error("nms: more than 2^31 - 1 boxes");

    Buffer<int32_t> classes;
    int64_t class_count = 1;
    if (idxs) {
        classes.reset(new int32_t[count]);
        class_count = number_classes(idxs, count, classes.get());
    }
    std::vector<Group<T>> groups(class_count, Group<T>{-1, -1});
    if (idxs)
        for (int64_t i = 0; i < count; ++i) ++groups[classes[i]].left;
    else
        groups[0].left = static_cast<int32_t>(count);

    const Buffer<Chunk<T>> chunks(new Chunk<T>[chunks_needed(count, class_count)]);
    const Buffer<int32_t> cells(new int32_t[cells_needed(count)]);
    const Buffer<int32_t> order = order_of(scores, count);
    Suppression<T> state = {boxes, classes.get(), round_down<T>(iou_threshold), groups.data(), chunks.get(),
                            cells.get(), 0, 0, count, 0, keep};
    CPGR_SIMD(suppress<T>)(state, order.get(), count);
    return state.kept;
}

#define CPGR_INSTANTIATE(T, S) \
    template int64_t nms<T, S>(const T*, const S*, const int64_t*, int64_t, double, int64_t*);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, double)
CPGR_INSTANTIATE(double, float)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
