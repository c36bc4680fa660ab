// Stable argsort for non-maximum suppression: two radix passes over the leading bits in which the keys differ, then a
// repair of the few neighbours that share those. Linear on scores as they come, n log n on the worst.
#pragma once

#include <algorithm>
#include <cstdint>

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

// Sorts by `digit_of(key)`, below 2^kBits, equal ones in their order of appearance.
template <int kBits, class Item, class Digit>
void radix_pass(const Item* from, Item* to, int64_t count, const Digit& digit_of) {
    uint32_t starts[1 << kBits] = {};
    for (int64_t i = 0; i < count; ++i) ++starts[digit_of(from[i].key)];
    uint32_t sum = 0;
    for (uint32_t& start : starts) {
        const uint32_t size = start;
        start = sum;
        sum += size;
    }
    for (int64_t i = 0; i < count; ++i) to[starts[digit_of(from[i].key)]++] = from[i];
}

// Puts items in order that are sorted already but for runs of equal `leading(key)`.
template <class Item, class Leading>
void sort_runs(Item* items, int64_t count, const Leading& leading) {
    constexpr int64_t short_run = 16;
    const auto before = [](const Item& a, const Item& b) { return a.key < b.key; };
    for (int64_t i = 1; i < count; ++i) {
        if (!before(items[i], items[i - 1])) continue;
        int64_t begin = i - 1, end = i + 1;
        while (begin > 0 && leading(items[begin - 1].key) == leading(items[i].key)) --begin;
        while (end < count && leading(items[end].key) == leading(items[i].key)) ++end;
        if (end - begin > short_run) {
            std::stable_sort(items + begin, items + end, before);
        } else {
            for (int64_t j = begin + 1; j < end; ++j) {
                const Item item = items[j];
                int64_t hole = j;
                for (; hole > begin && before(item, items[hole - 1]); --hole) items[hole] = items[hole - 1];
                items[hole] = item;
            }
        }
        i = end - 1;
    }
}

template <int kBits, class Key>
void stable_sort(Keyed<Key>* items, Keyed<Key>* spare, int64_t count) {
    Key least = items[0].key, largest = items[0].key;
    for (int64_t i = 1; i < count; ++i) {
        least = std::min(least, items[i].key);
        largest = std::max(largest, items[i].key);
    }
    int shift = 0;  // of the bits that are left out
    while ((largest - least) >> shift >> 2 * kBits) ++shift;
    const auto leading = [=](Key key) { return static_cast<uint32_t>((key - least) >> shift); };
    radix_pass<kBits>(items, spare, count, [=](Key key) { return leading(key) & ((1 << kBits) - 1); });
    radix_pass<kBits>(spare, items, count, [=](Key key) { return leading(key) >> kBits; });
    if (shift > 0) sort_runs(items, count, leading);
}

// Sorts `items` by key, ascending, equal keys in their order of appearance. `spare` has room for `count` too.
template <class Key>
void stable_sort(Keyed<Key>* items, Keyed<Key>* spare, int64_t count) {
    if (count < 2) return;
    if (count < 256)
        stable_sort<7>(items, spare, count);
    else if (count < 6000)
        stable_sort<9>(items, spare, count);
    else
        stable_sort<11>(items, spare, count);
}

}  // namespace cpgr
