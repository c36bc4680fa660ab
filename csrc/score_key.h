// Scores as integers whose ascending order is torch's descending order of scores.
#pragma once

#include <cstdint>
#include <cstring>

#include "box.h"

namespace cpgr {

template <int kBytes>
struct UnsignedOf;
template <>
struct UnsignedOf<4> {
    using type = uint32_t;
};
template <>
struct UnsignedOf<8> {
    using type = uint64_t;
};

// NaN first, then large to small, -0 equal to 0.
template <class T>
CPGR_INLINE auto descending_key(T score) -> typename UnsignedOf<sizeof(T)>::type {
    using Key = typename UnsignedOf<sizeof(T)>::type;
    constexpr Key sign = Key{1} << (sizeof(Key) * 8 - 1);
    if (score != score) return Key{0};
    if (score == T{0}) score = T{0};
    Key bits;
    memcpy(&bits, &score, sizeof(bits));
    const Key ascending = (bits & sign) ? ~bits : (bits | sign);
    return static_cast<Key>(~ascending);
}

}  // namespace cpgr
