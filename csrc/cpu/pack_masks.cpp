#include "pack_masks.h"

#include <vector>

#include "parallel.h"
#include "rle.h"
#include "simd/pack_masks.h"

namespace cpgr {
namespace {

// Pixels that are worth a thread.
constexpr int64_t kPixelsPerThread = 1 << 19;

int64_t grain(PackedGrid grid) { return kPixelsPerThread / std::max<int64_t>(grid.height * grid.width, 1) + 1; }

}  // namespace

void pack_masks(const uint8_t* masks, int64_t count, int64_t height, int64_t width, uint64_t* bits, int64_t* areas,
                Extent* boxes, int threads) {
    const PackedGrid grid = PackedGrid::of(height, width);
    const auto pack = CPGR_SIMD(pack_mask);
    const auto measure = CPGR_SIMD(measure_mask);
    parallel_for(count, grain(grid), threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
            uint64_t* own = bits + k * grid.words();
            pack(masks + k * height * width, grid, own);
            areas[k] = measure(own, grid, boxes + k);
        }
    });
}

void pack_rle(const uint8_t* runs, const int64_t* starts, const uint8_t* numbers, int64_t count, int64_t height,
              int64_t width, uint64_t* bits, int64_t* areas, Extent* boxes, uint8_t* faults, int threads) {
    const PackedGrid grid = PackedGrid::of(height, width);
    const auto measure = CPGR_SIMD(measure_mask);
    // A pixel costs far less here, and a run far more, than a pixel of a dense mask.
    parallel_for(count, 8 * grain(grid), threads, [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> carry(grid.columns);
        for (int64_t k = begin; k < end; ++k) {
            uint64_t* own = bits + k * grid.words();
            const uint8_t *first = runs + starts[k], *last = runs + starts[k + 1];
            const RleFault fault = numbers[k] ? paint_runs(NumberRuns(first, last), grid, own, carry.data())
                                              : paint_runs(TextRuns(first, last), grid, own, carry.data());
            faults[k] = static_cast<uint8_t>(fault);
            if (fault == RleFault::none) areas[k] = measure(own, grid, boxes + k);
        }
    });
}

}  // namespace cpgr
