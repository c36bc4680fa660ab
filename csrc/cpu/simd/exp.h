// exp of every lane, to one or two units in the last place.
#pragma once

#include "lanes.h"

namespace cpgr::CPGR_ISA {

// Cody and Waite's reduction x = n ln 2 + r and the polynomial of Cephes' expf for r. Below the least normal number the
// result is 0, above the largest float it is infinite; NaN stays NaN.
static inline FloatReg exp(FloatReg x) {
    using L = Lanes<float>;
    const FloatReg magic = L::all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const FloatReg shifted = fma(x, L::all(1.44269504f), magic);
    const FloatReg n = shifted - magic;
    FloatReg r = fma(n, L::all(-0.693359375f), x);
    r = fma(n, L::all(2.12194440e-4f), r);
    FloatReg p = L::all(1.9875691500e-4f);
    p = fma(p, r, L::all(1.3981999507e-3f));
    p = fma(p, r, L::all(8.3334519073e-3f));
    p = fma(p, r, L::all(4.1665795894e-2f));
    p = fma(p, r, L::all(1.6666665459e-1f));
    p = fma(p, r, L::all(5.0000001201e-1f));
    const FloatReg y = fma(p, r * r, r) + L::all(1.f);
    const L::IndexReg exponent = (L::IndexReg)shifted << 23;  // n, moved to where a float keeps its exponent
    FloatReg result = (FloatReg)((L::IndexReg)y + exponent);
    result = x < L::all(-87.3365f) ? L::all(0.f) : result;
    result = x > L::all(88.7228f) ? L::all(__builtin_inff()) : result;
    return x == x ? result : x;
}

static inline DoubleReg exp(DoubleReg x) {
    for (int lane = 0; lane < Lanes<double>::count; ++lane) x[lane] = __builtin_exp(x[lane]);
    return x;
}

}  // namespace cpgr::CPGR_ISA
