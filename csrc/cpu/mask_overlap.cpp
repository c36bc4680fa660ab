#include "mask_overlap.h"

#include <memory>
#include <type_traits>

#include "parallel.h"
#include "simd/mask_overlap.h"

namespace cpgr {
namespace {

// Below this many products a second thread costs more than it saves.
constexpr int64_t kProductsPerThread = 1 << 18;

int64_t grain(int64_t products_each) { return kProductsPerThread / std::max<int64_t>(products_each, 1) + 1; }

}  // namespace

template <class T, class M>
void mask_overlap(const T* responses, const M* masks, OverlapSizes sizes, T threshold, T* inter, T* response, T* mask,
                  T* hard, T* peak, int64_t* argmax, int threads) {
    const auto [batch, maps, count, pixels] = sizes;
    const auto add = CPGR_SIMD(add_tile<T, M>);
    const auto sum = CPGR_SIMD(sum_of<T>);
    for (int64_t row = 0; row < batch * maps; ++row)
        response[row] = static_cast<T>(sum(responses + row * pixels, pixels));

    const std::unique_ptr<Overlap<T>[]> scratch(new Overlap<T>[batch * count * maps]());
    const std::unique_ptr<double[]> totals(new double[batch * count]());
    // Masks of all samples in one loop; those of one sample take its responses tile by tile from the cache.
    parallel_for(batch * count, grain(std::max<int64_t>(maps, 1) * pixels), threads, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t b = begin / count, stop = std::min(end, (b + 1) * count);
            for (int64_t first = 0; first < pixels; first += kTile)
                add(responses + b * maps * pixels, maps, masks + begin * pixels, stop - begin, pixels, first,
                    std::min(kTile, pixels - first), threshold, scratch.get() + begin * maps, totals.get() + begin);
            for (int64_t row = begin; row < stop; ++row) {
                mask[row] = static_cast<T>(totals[row]);
                for (int64_t k = 0; k < maps; ++k) {
                    const Overlap<T>& from = scratch[row * maps + k];
                    const int64_t to = (b * maps + k) * count + row - b * count;
                    inter[to] = static_cast<T>(from.inter);
                    hard[to] = static_cast<T>(from.hard);
                    peak[to] = from.peak;
                    argmax[to] = from.argmax;
                }
            }
            begin = stop;
        }
    });
}

template <class T, class M>
void mask_overlap_backward(const T* grad_inter, const T* grad_response, const T* grad_peak, const M* masks,
                           const int64_t* argmax, OverlapSizes sizes, T* grad_responses, int threads) {
    const auto [batch, maps, count, pixels] = sizes;
    const auto weigh = CPGR_SIMD(weigh_masks<T, M>);
    const int64_t tiles = (pixels + kTile - 1) / kTile, all_masks = count, all_maps = maps, all_pixels = pixels;
    // Tiles of all samples; the maps of one take its masks from the cache.
    const int64_t products = maps * count * std::min(pixels, kTile);
    parallel_for(batch * tiles, grain(products), threads, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
            const int64_t b = tile / tiles, first = tile % tiles * kTile, last = std::min(first + kTile, all_pixels);
            const M* own = masks + b * all_masks * all_pixels;
            for (int64_t row = b * all_maps; row < (b + 1) * all_maps; ++row) {
                T* out = grad_responses + row * all_pixels;
                weigh(grad_inter ? grad_inter + row * all_masks : nullptr, own, grad_inter ? all_masks : 0, all_pixels,
                      first, last, grad_response ? grad_response[row] : T(0), out);
                for (int64_t n = 0; grad_peak && n < all_masks; ++n) {
                    const int64_t at = argmax[row * all_masks + n];
                    if (at < first || at >= last) continue;
                    const M mask = own[n * all_pixels + at];
                    const T share = std::is_same<M, uint8_t>::value ? T(mask != 0) : static_cast<T>(mask);
                    out[at] += grad_peak[row * all_masks + n] * share;
                }
            }
        }
    });
}

template <class T>
void mask_overlap_backward_masks(const T* grad_inter, const T* grad_mask, const T* grad_hard, const T* grad_peak,
                                 const T* responses, const int64_t* argmax, OverlapSizes sizes, T threshold,
                                 T* grad_masks, int threads) {
    const auto [batch, maps, count, pixels] = sizes;
    const auto weigh = CPGR_SIMD(weigh_responses<T>);
    const int64_t all_masks = count, all_maps = maps, all_pixels = pixels;
    parallel_for(batch * count, grain(maps * pixels), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / all_masks, at = b * all_maps * all_masks + row % all_masks;
            const T* own = responses + b * all_maps * all_pixels;
            T* out = grad_masks + row * all_pixels;
            weigh(grad_inter ? grad_inter + at : nullptr, grad_hard ? grad_hard + at : nullptr, all_masks, own,
                  all_maps, all_pixels, threshold, grad_mask ? grad_mask[row] : T(0), out);
            for (int64_t k = 0; grad_peak && k < all_maps; ++k) {
                const int64_t pixel = argmax[at + k * all_masks];
                if (pixel >= 0 && pixel < all_pixels)
                    out[pixel] += grad_peak[at + k * all_masks] * own[k * all_pixels + pixel];
            }
        }
    });
}

#define CPGR_INSTANTIATE(T, M)                                                                                       \
    template void mask_overlap<T, M>(const T*, const M*, OverlapSizes, T, T*, T*, T*, T*, T*, int64_t*, int);        \
    template void mask_overlap_backward<T, M>(const T*, const T*, const T*, const M*, const int64_t*, OverlapSizes,  \
                                              T*, int);
CPGR_INSTANTIATE(float, uint8_t)
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(double, uint8_t)
CPGR_INSTANTIATE(double, double)
#undef CPGR_INSTANTIATE
#define CPGR_INSTANTIATE(T)                                                                                          \
    template void mask_overlap_backward_masks<T>(const T*, const T*, const T*, const T*, const T*, const int64_t*,   \
                                                 OverlapSizes, T, T*, int);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr
