// No template of the standard library may be used here (see csrc/box.h).
#include "region_attention.h"

#include "lanes.h"

namespace cpgr::CPGR_ISA {

template <class T>
void mass_in_regions(const T* maps, int64_t queries, int64_t cells, int64_t columns, const Region<T>* regions,
                     int64_t count, T* out) {
    constexpr int lanes = Lanes<T>::count;
    // As many maps at a time as there are lanes: their sums across lanes are then made together.
    for (int64_t q = 0; q < queries; q += lanes) {
        const int64_t number = queries - q < lanes ? queries - q : lanes;
        for (int64_t r = 0; r < count; ++r) {
            const Region<T>& region = regions[r];
            V<T> sums[lanes] = {};
            for (int64_t j = region.left; j < region.right; j += lanes) {
                const int64_t filled = region.right - j < lanes ? region.right - j : lanes;
                const V<T> across = load_first(region.across + j, filled);
                for (int64_t i = region.top; i < region.bottom; ++i) {
                    const V<T> share = across * all(region.down[i]);
                    const T* cell = maps + q * cells + i * columns + j;
                    for (int64_t k = 0; k < number; ++k)
                        sums[k] = fma(load_first(cell + k * cells, filled), share, sums[k]);
                }
            }
            T masses[lanes];
            store<T>(masses, sums_of_lanes<T>(sums) * all(region.weight));
            for (int64_t k = 0; k < number; ++k) out[(q + k) * count + r] = masses[k];
        }
    }
}

template <class T>
void spread_over_regions(const T* grad, int64_t queries, int64_t cells, int64_t columns, const Region<T>* regions,
                         int64_t count, T* grad_maps) {
    for (int64_t q = 0; q < queries; ++q) {
        T* map = grad_maps + q * cells;
        for (int64_t cell = 0; cell < cells; ++cell) map[cell] = T(0);
        for (int64_t r = 0; r < count; ++r) {
            const Region<T>& region = regions[r];
            const T* __restrict__ across = region.across;
            for (int64_t i = region.top; i < region.bottom; ++i) {
                const T share = grad[q * count + r] * region.weight * region.down[i];
                T* __restrict__ row = map + i * columns;
                for (int64_t j = region.left; j < region.right; ++j) row[j] += share * across[j];
            }
        }
    }
}

#define CPGR_INSTANTIATE(T)                                                                                           \
    template void mass_in_regions<T>(const T*, int64_t, int64_t, int64_t, const Region<T>*, int64_t, T*);             \
    template void spread_over_regions<T>(const T*, int64_t, int64_t, int64_t, const Region<T>*, int64_t, T*);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::CPGR_ISA
