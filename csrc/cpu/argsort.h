// Stable argsort by least-significant-digit radix passes over (key, index) pairs: linear, and several times faster than
// a comparison sort at the sizes that non-maximum suppression sees.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../score_key.h"

namespace cpgr {

template <class Key>
struct Keyed {
    Key key;
    int32_t index;
};

inline uint64_t ascending_key(int64_t value) {
    return static_cast<uint64_t>(value) ^ (uint64_t{1} << 63);
}

template <int kBits, class Key>
Keyed<Key>* radix_passes(Keyed<Key>* items, Keyed<Key>* spare, int64_t count) {
    constexpr int key_bits = sizeof(Key) * 8, digits = (key_bits + kBits - 1) / kBits, radix = 1 << kBits;
    const auto digit_of = [](Key key, int digit) { return static_cast<uint32_t>(key >> (kBits * digit)) & (radix - 1); };

    uint32_t histogram[digits][radix] = {};
    for (int64_t i = 0; i < count; ++i)
        for (int digit = 0; digit < digits; ++digit) ++histogram[digit][digit_of(items[i].key, digit)];

    for (int digit = 0; digit < digits; ++digit) {
        uint32_t* start = histogram[digit];
        // All keys share this digit: the pass would change nothing.
        if (start[digit_of(items[0].key, digit)] == static_cast<uint32_t>(count)) continue;
        uint32_t sum = 0;
        for (int value = 0; value < radix; ++value) sum += std::exchange(start[value], sum);
        for (int64_t i = 0; i < count; ++i) spare[start[digit_of(items[i].key, digit)]++] = items[i];
        std::swap(items, spare);
    }
    return items;
}

// Sorts `items` by key, ascending, equal keys in their order of appearance. The result is in one of the two buffers,
// which both have room for `count`; which one is returned.
template <class Key>
Keyed<Key>* stable_sort(Keyed<Key>* items, Keyed<Key>* spare, int64_t count) {
    if (count < 2) return items;
    // Wide digits take fewer passes but a longer sum over their histogram.
    return count < 2500 ? radix_passes<8>(items, spare, count) : radix_passes<11>(items, spare, count);
}

}  // namespace cpgr
