#include "region_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"
#include "simd/region_attention.h"

namespace cpgr {
namespace {

constexpr int64_t kCellsPerThread = 1 << 15;

// The share of each of `cells` equal parts of 0..size that low..high covers, and the range of parts it touches.
template <class T>
void cover(T low, T high, int64_t cells, double size, T* share, int64_t& begin, int64_t& end) {
    const T step = static_cast<T>(size / cells);
    begin = cells;
    end = 0;
    for (int64_t i = 0; i < cells; ++i) {
        const T start = i * step, covered = std::min(high, start + step) - std::max(low, start);
        share[i] = std::max(covered, T(0)) / step;
        if (share[i] > 0) begin = std::min(begin, i), end = i + 1;
    }
    begin = std::min(begin, end);
}

template <class T>
std::vector<Region<T>> regions_of(const T* boxes, int64_t count, const CellGrid& grid, std::vector<T>& shares) {
    std::vector<Region<T>> regions(count);
    shares.resize(count * (grid.rows + grid.columns));
    for (int64_t r = 0; r < count; ++r) {
        const T *box = boxes + 4 * r, x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
        T *down = shares.data() + r * (grid.rows + grid.columns), *across = down + grid.rows;
        Region<T>& region = regions[r];
        cover(x1, x2, grid.columns, grid.width, across, region.left, region.right);
        cover(y1, y2, grid.rows, grid.height, down, region.top, region.bottom);
        region.across = across;
        region.down = down;
        const T width = std::max(x2 - x1, T(0)) / static_cast<T>(grid.width);
        const T height = std::max(y2 - y1, T(0)) / static_cast<T>(grid.height);
        const T area = std::max(width * height, static_cast<T>(grid.least_area));
        const bool known = x1 == x1 && y1 == y1 && x2 == x2 && y2 == y2;  // a NaN coordinate makes the mass NaN
        region.weight = known ? T(1) / std::pow(area, static_cast<T>(grid.gamma)) : std::numeric_limits<T>::quiet_NaN();
    }
    return regions;
}

}  // namespace

template <class T>
void region_attention(const T* maps, int64_t map_step, const T* boxes, int64_t box_step, int64_t batch, int64_t queries,
                      int64_t count, const CellGrid& grid, T* out, int threads) {
    const auto kernel = CPGR_SIMD(mass_in_regions<T>);
    const int64_t cells = grid.rows * grid.columns;
    std::vector<T> shares;
    std::vector<Region<T>> regions;
    for (int64_t b = 0; b < batch; ++b) {
        if (b == 0 || box_step != 0) regions = regions_of(boxes + b * box_step, count, grid, shares);
        const T* map = maps + b * map_step;
        T* mass = out + b * queries * count;
        parallel_for(queries, kCellsPerThread / std::max<int64_t>(cells * count, 1) + 1, threads,
                     [&](int64_t begin, int64_t end) {
                         kernel(map + begin * cells, end - begin, cells, grid.columns, regions.data(), count,
                                mass + begin * count);
                     });
    }
}

template <class T>
void region_attention_backward(const T* grad, const T* boxes, int64_t box_step, int64_t batch, int64_t queries,
                               int64_t count, const CellGrid& grid, T* grad_maps, int threads) {
    const auto kernel = CPGR_SIMD(spread_over_regions<T>);
    const int64_t cells = grid.rows * grid.columns;
    std::vector<T> shares;
    std::vector<Region<T>> regions;
    for (int64_t b = 0; b < batch; ++b) {
        if (b == 0 || box_step != 0) regions = regions_of(boxes + b * box_step, count, grid, shares);
        const T* from = grad + b * queries * count;
        T* to = grad_maps + b * queries * cells;
        parallel_for(queries, kCellsPerThread / std::max<int64_t>(cells * count, 1) + 1, threads,
                     [&](int64_t begin, int64_t end) {
                         kernel(from + begin * count, end - begin, cells, grid.columns, regions.data(), count,
                                to + begin * cells);
                     });
    }
}

#define CPGR_INSTANTIATE(T)                                                                                          \
    template void region_attention<T>(const T*, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, const CellGrid&,  \
                                      T*, int);                                                                      \
    template void region_attention_backward<T>(const T*, const T*, int64_t, int64_t, int64_t, int64_t, const CellGrid&,  \
                                               T*, int);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr
