#include "mask_iou.h"

#include <vector>

#include "parallel.h"
#include "simd/mask_iou.h"

namespace cpgr {
namespace {

// Tiles of work that are worth a thread.
constexpr int64_t kTilesPerThread = 1 << 16;

// Boxes are kept within the grid whatever they say: they decide where memory is read.
std::vector<Tiles> tiles_of(const PackedMasks& masks, PackedGrid grid) {
    const auto within = [](int64_t value, int64_t most) {
        return static_cast<int32_t>(std::min(std::max<int64_t>(value, 0), most));
    };
    std::vector<Tiles> tiles(masks.count);
    for (int64_t k = 0; k < masks.count; ++k) {
        const Extent box = masks.boxes[k];
        tiles[k] = {within(box.y1 / kTileRows, grid.rows), within(box.x1 / kTileColumns, grid.columns),
                    within((int64_t{box.y2} + kTileRows - 1) / kTileRows, grid.rows),
                    within((int64_t{box.x2} + kTileColumns - 1) / kTileColumns, grid.columns)};
    }
    return tiles;
}

double iou_of(int64_t inter, int64_t area_a, int64_t area_b, bool crowd) {
    if (inter == 0) return 0;
    return static_cast<double>(inter) / static_cast<double>(crowd ? area_a : area_a + area_b - inter);
}

}  // namespace

void mask_iou(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
              double* out, int threads) {
    const PackedGrid grid = PackedGrid::of(height, width);
    const std::vector<Tiles> tiles_a = tiles_of(a, grid), tiles_b = tiles_of(b, grid);
    const auto kernel = CPGR_SIMD(intersect_masks);
    // Large blocks read the masks less often; several threads need several of them.
    const int64_t down = threads == 1 ? kMaskBlock
                                      : std::min<int64_t>(std::max<int64_t>(a.count / (2 * threads), 16), kMaskBlock);
    const int64_t across = (b.count + kMaskBlock - 1) / kMaskBlock, total = (a.count + down - 1) / down * across;
    const auto some = [&](const PackedMasks& masks, const std::vector<Tiles>& tiles, int64_t first, int64_t most) {
        return Packed{masks.bits + first * grid.words(), tiles.data() + first, std::min(masks.count - first, most),
                      grid.words()};
    };
    const int64_t tiles_a_block = std::min(a.count, down) * std::min<int64_t>(b.count, kMaskBlock) * grid.rows *
                                  grid.columns;
    const int64_t grain = kTilesPerThread / std::max<int64_t>(tiles_a_block, 1) + 1;
    parallel_for(total, grain, threads, [&](int64_t begin, int64_t end) {
        std::vector<int64_t> inter(std::min(a.count, down) * kMaskBlock);
        for (int64_t block = begin; block < end; ++block) {
            const int64_t row = block / across * down, column = block % across * kMaskBlock;
            const Packed some_a = some(a, tiles_a, row, down), some_b = some(b, tiles_b, column, kMaskBlock);
            std::fill(inter.begin(), inter.end(), 0);
            kernel(some_a, some_b, static_cast<int32_t>(grid.rows), static_cast<int32_t>(grid.columns), inter.data());
            for (int64_t i = 0; i < some_a.count; ++i)
                for (int64_t j = 0; j < some_b.count; ++j)
                    out[(row + i) * b.count + column + j] =
                        iou_of(inter[i * kMaskBlock + j], a.areas[row + i], b.areas[column + j],
                               crowd && crowd[column + j]);
        }
    });
}

void mask_iou_pairs(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
                    double* out, int threads) {
    const PackedGrid grid = PackedGrid::of(height, width);
    const std::vector<Tiles> tiles_a = tiles_of(a, grid), tiles_b = tiles_of(b, grid);
    const auto kernel = CPGR_SIMD(intersect_pair);
    const int64_t grain = kTilesPerThread / std::max<int64_t>(grid.rows * grid.columns, 1) + 1;
    parallel_for(a.count, grain, threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
            const int64_t inter = kernel(a.bits + k * grid.words(), tiles_a[k], b.bits + k * grid.words(), tiles_b[k],
                                         static_cast<int32_t>(grid.columns));
            out[k] = iou_of(inter, a.areas[k], b.areas[k], crowd && crowd[k]);
        }
    });
}

}  // namespace cpgr
