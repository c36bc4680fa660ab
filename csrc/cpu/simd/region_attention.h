#pragma once

#include <cstdint>

#include "../isa.h"

namespace cpgr {

// The cells that a box covers, and 1 / area^gamma.
template <class T>
struct Region {
    int64_t top, bottom, left, right;  // ranges of rows and columns, ends excluded
    const T *across, *down;            // the covered share of every column, of every row
    T weight;
};

CPGR_DECLARE_SIMD(
    // maps [queries, cells]: out [queries, count].
    template <class T>
    void mass_in_regions(const T* maps, int64_t queries, int64_t cells, int64_t columns, const Region<T>* regions,
                         int64_t count, T* out);

    // grad [queries, count]: grad_maps [queries, cells].
    template <class T>
    void spread_over_regions(const T* grad, int64_t queries, int64_t cells, int64_t columns, const Region<T>* regions,
                             int64_t count, T* grad_maps);)

}  // namespace cpgr
