// Stable argsort by least-significant-digit radix passes: linear, and several times faster than a comparison sort
// at the sizes that non-maximum suppression sees.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace cpgr {

// A key whose ascending order is torch's descending order of scores: NaN first, then large to small, -0 equal to 0.
template <class T>
auto descending_key(T score) {
    using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    constexpr Key sign = Key{1} << (sizeof(Key) * 8 - 1);
    if (score != score) return Key{0};
    if (score == T{0}) score = T{0};
    Key bits;
    std::memcpy(&bits, &score, sizeof(bits));
    const Key ascending = (bits & sign) ? ~bits : (bits | sign);
    return static_cast<Key>(~ascending);
}

inline uint64_t ascending_key(int64_t value) {
    return static_cast<uint64_t>(value) ^ (uint64_t{1} << 63);
}

// Positions of `keys` in ascending order, equal keys in their order of appearance.
template <class Key>
std::vector<int32_t> stable_argsort(const std::vector<Key>& keys) {
    constexpr int digits = sizeof(Key), radix = 256;
    const int32_t count = static_cast<int32_t>(keys.size());
    std::vector<int32_t> order(count), next(count);
    for (int32_t i = 0; i < count; ++i) order[i] = i;

    uint32_t histogram[digits][radix] = {};
    for (const Key key : keys)
        for (int digit = 0; digit < digits; ++digit) ++histogram[digit][(key >> (8 * digit)) & 255];

    for (int digit = 0; digit < digits; ++digit) {
        uint32_t* start = histogram[digit];
        // All keys share this digit: the pass would change nothing.
        if (count == 0 || start[(keys[0] >> (8 * digit)) & 255] == static_cast<uint32_t>(count)) continue;
        uint32_t sum = 0;
        for (int value = 0; value < radix; ++value) sum += std::exchange(start[value], sum);
        for (const int32_t i : order) next[start[(keys[i] >> (8 * digit)) & 255]++] = i;
        order.swap(next);
    }
    return order;
}

}  // namespace cpgr
