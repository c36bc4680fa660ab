// The way back that anchor_scores, anchor_contrast and maxsim share: a gradient for each query and winner, added to the
// rows of both.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "anchors.h"
#include "pages.h"
#include "parallel.h"
#include "scratch.h"
#include "simd/anchors.h"

namespace cpgr {

// Queries that are worked on together, and images: as many as bound the scratch for each query and for each anchor.
constexpr int64_t kBlockQueries = 1024, kBlockEntries = 128, kBlockAnchors = 1 << 18;
// Anchors of a few images whose columns, with their gradients, fit into a first-level cache.
constexpr int64_t kSlots = 64;
// Below this many numbers to look at a second thread costs more than it saves.
constexpr int64_t kEntriesPerThread = 1 << 14;

// The anchors of a block of images that win for a block of queries. Each gets a slot: the columns of winning anchors
// lie packed in the scratch of the gradients. Where there are few anchors all have a slot, their own number.
class Winners {
public:
    Winners(int64_t anchors, int64_t images, int64_t entries)
        : anchors_(anchors),
          all_(anchors <= kSlots),
          most_(all_ ? anchors : std::min(anchors, entries)),
          rows_(images * most_),
          count_(images, static_cast<int32_t>(most_)),
          slot_of_(all_ ? 0 : images * anchors, -1) {
        for (int64_t i = 0; all_ && i < images * anchors; ++i) rows_[i] = static_cast<int32_t>(i % anchors);
    }

    int64_t most() const { return most_; }
    int64_t count(int64_t image) const { return count_[image]; }
    int64_t row(int64_t image, int64_t slot) const { return rows_[image * most_ + slot]; }

    void forget(int64_t image) {
        if (all_) return;
        for (int64_t slot = 0; slot < count_[image]; ++slot) slot_of_[image * anchors_ + row(image, slot)] = -1;
        count_[image] = 0;
    }

    int32_t slot(int64_t image, int64_t anchor) {
        if (all_) return static_cast<int32_t>(anchor);
        int32_t& slot = slot_of_[image * anchors_ + anchor];
        if (slot < 0) {
            slot = count_[image]++;
            rows_[image * most_ + slot] = static_cast<int32_t>(anchor);
        }
        return slot;
    }

    // Calls body(anchor) for those without a slot.
    template <class Body>
    void each_loser(int64_t image, const Body& body) const {
        for (int64_t n = 0; !all_ && n < anchors_; ++n)
            if (slot_of_[image * anchors_ + n] < 0) body(n);
    }

private:
    const int64_t anchors_;
    const bool all_;
    const int64_t most_;
    std::vector<int32_t> rows_, count_, slot_of_;
};

// With w = the share of query q and the j-th winner n of image b: grad_queries[q] += w anchors[b, n] and
// grad_anchors[b, n] += w queries[q]. get_shares(q, first_image, images, out) writes [images, k] shares and
// get_index(q, b, j) tells n, or -1 for none. False if it is anything else. Threads share out the columns, so no two
// write the same number and the order of all sums is fixed.
template <class E, class GetShares, class GetIndex>
bool scatter_gradients(const E* anchors, const E* queries, AnchorShape shape, Compute<E>* grad_anchors,
                       Compute<E>* grad_queries, int threads, const GetShares& get_shares, const GetIndex& get_index) {
    using T = Compute<E>;
    const auto scatter = CPGR_SIMD(scatter_gradients<T>);
    const auto take = CPGR_SIMD(take_columns<E>);
    const auto put = CPGR_SIMD(put_columns<T>);
    const int64_t columns = CPGR_SIMD(gradient_columns<T>)(), width = shape.width, k = shape.k;
    const int64_t chunks = (width + columns - 1) / columns;
    const int64_t block_queries = std::min(shape.queries, kBlockQueries);
    if (block_queries == 0 || shape.images == 0 || shape.anchors == 0 || width == 0) {
        std::fill_n(grad_anchors, shape.images * shape.anchors * width, T(0));
        std::fill_n(grad_queries, shape.queries * width, T(0));
        return true;
    }
    prefer_large_pages(grad_anchors, shape.images * shape.anchors * width * static_cast<int64_t>(sizeof(T)));
    const int64_t block_images = std::clamp<int64_t>(std::min(kBlockEntries / k, kBlockAnchors / shape.anchors), 1,
                                                     shape.images);

    Winners winners(shape.anchors, block_images, block_queries * k);
    const int64_t together = std::clamp<int64_t>(kSlots / winners.most(), 1, block_images);
    const int64_t slots_together = together * winners.most();
    const int64_t parts = std::min<int64_t>(threads, chunks), per_part = 2 * slots_together * columns;
    const Scratch<T> shares(block_queries * block_images * k), scratch(parts * per_part);
    const Scratch<T> q_columns(chunks * block_queries * columns), q_grads(chunks * block_queries * columns);
    const Scratch<int32_t> slots(block_queries * block_images * k);
    const Scratch<const void*> rows_ahead(parts * 2 * slots_together);
    std::atomic<bool> in_range{true};
    const auto filled = [&](int64_t chunk) { return std::min(columns, width - chunk * columns); };

    for (int64_t q0 = 0; q0 < shape.queries; q0 += block_queries) {
        const int64_t count = std::min(block_queries, shape.queries - q0);
        parallel_for(chunks, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t q = 0; q < count; ++q)
                for (int64_t chunk = begin; chunk < end; ++chunk)
                    take(queries + (q0 + q) * width + chunk * columns, filled(chunk),
                         q_columns.get() + (chunk * block_queries + q) * columns);
            std::fill(q_grads.get() + begin * block_queries * columns, q_grads.get() + end * block_queries * columns,
                      T(0));
        });

        for (int64_t b0 = 0; b0 < shape.images; b0 += block_images) {
            const int64_t images = std::min(block_images, shape.images - b0);
            // The entries of images that are taken together lie in a row, query by query: those of query q start here.
            const auto entries = [&](int64_t q, int64_t b) {
                const int64_t first = b / together * together;
                return (first * count + q * std::min(together, images - first)) * k;
            };
            parallel_for(count, kEntriesPerThread / (images * k) + 1, threads, [&](int64_t begin, int64_t end) {
                for (int64_t q = begin; q < end; ++q)
                    for (int64_t b = 0; b < images; b += together)
                        get_shares(q0 + q, b0 + b, std::min(together, images - b), shares.get() + entries(q, b));
            });
            parallel_for(images, kEntriesPerThread / (count * k) + 1, threads, [&](int64_t begin, int64_t end) {
                for (int64_t b = begin; b < end; ++b) winners.forget(b);
                for (int64_t q = 0; q < count; ++q)
                    for (int64_t b = begin; b < end; ++b)
                        for (int64_t j = 0; j < k; ++j) {
                            const int64_t entry = entries(q, b) + b % together * k + j;
                            int64_t n = get_index(q0 + q, b0 + b, j);
                            if (n < 0 || n >= shape.anchors) {
                                if (n != -1) in_range = false;
                                shares.get()[entry] = 0;
                                n = 0;
                            }
                            // The slots of images that are taken together follow one another.
                            slots.get()[entry] = static_cast<int32_t>(b % together * winners.most()) + winners.slot(b, n);
                        }
                for (int64_t b = begin; q0 == 0 && b < end; ++b)
                    winners.each_loser(b, [&](int64_t n) {
                        std::fill_n(grad_anchors + ((b0 + b) * shape.anchors + n) * width, width, T(0));
                    });
            });
            if (!in_range) return false;

            std::atomic<int64_t> next_part{0};
            parallel_for(chunks, 1, static_cast<int>(parts), [&](int64_t begin, int64_t end) {
                const int64_t part = next_part++;
                T* const a_columns = scratch.get() + part * per_part;
                T* const a_grads = a_columns + slots_together * columns;
                const void** const ahead = rows_ahead.get() + part * 2 * slots_together;
                // Calls body(offset of a winner's columns, its slot's offset) for the images from b on.
                const auto each_winner = [&](int64_t chunk, int64_t b, const auto& body) {
                    for (int64_t i = 0; i < together && b + i < images; ++i)
                        for (int64_t s = 0; s < winners.count(b + i); ++s)
                            body(((b0 + b + i) * shape.anchors + winners.row(b + i, s)) * width + chunk * columns,
                                 (i * winners.most() + s) * columns);
                };
                for (int64_t chunk = begin; chunk < end; ++chunk)
                    for (int64_t b = 0; b < images; b += together) {
                        each_winner(chunk, b, [&](int64_t row, int64_t slot) {
                            take(anchors + row, filled(chunk), a_columns + slot);
                            std::fill_n(a_grads + slot, columns, T(0));
                        });
                        // What is next is called for early: it lies in pieces that the processor does not foresee.
                        const bool last = b + together >= images;
                        int64_t aheads = 0;
                        if (!last || chunk + 1 < end)
                            each_winner(chunk + last, last ? 0 : b + together, [&](int64_t row, int64_t) {
                                ahead[aheads++] = anchors + row;
                                ahead[aheads++] = grad_anchors + row;
                            });
                        scatter(shares.get() + entries(0, b), slots.get() + entries(0, b), count,
                                std::min(together, images - b) * k, a_columns,
                                q_columns.get() + chunk * block_queries * columns, a_grads,
                                q_grads.get() + chunk * block_queries * columns, ahead, aheads);
                        each_winner(chunk, b, [&](int64_t row, int64_t slot) {
                            put(a_grads + slot, filled(chunk), q0 > 0, grad_anchors + row);
                        });
                    }
            });
        }

        parallel_for(chunks, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t q = 0; q < count; ++q)
                for (int64_t chunk = begin; chunk < end; ++chunk)
                    put(q_grads.get() + (chunk * block_queries + q) * columns, filled(chunk), false,
                        grad_queries + (q0 + q) * width + chunk * columns);
        });
    }
    return true;
}

}  // namespace cpgr
