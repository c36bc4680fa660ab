// bfloat16: the upper half of a float.
#pragma once

#include <cstdint>

namespace cpgr {

struct BF16 {
    uint16_t bits;
};

// What an element type is multiplied and summed in.
template <class E>
struct ComputeType {
    using type = E;
};
template <>
struct ComputeType<BF16> {
    using type = float;
};
template <class E>
using Compute = typename ComputeType<E>::type;

static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }
static inline float widen(BF16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    __builtin_memcpy(&result, &bits, sizeof(result));
    return result;
}

}  // namespace cpgr
