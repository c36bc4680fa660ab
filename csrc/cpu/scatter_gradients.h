// The way back that anchor_scores, anchor_contrast and maxsim share: a gradient for each query and winner, added to the
// rows of both.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "anchors.h"
#include "buffer.h"
#include "parallel.h"
#include "simd/anchors.h"

namespace cpgr {

// Queries and images that are worked on together: their shares, slots and columns fit into a second-level cache.
constexpr int64_t kBlockQueries = 1024, kBlockImages = 32;
// Winning anchors of a few images whose columns, with their gradients, fit into a first-level cache.
constexpr int64_t kSlots = 64;

// With w = the share of query q and the j-th winner n of image b: grad_queries[q] += w anchors[b, n] and
// grad_anchors[b, n] += w queries[q]. get_shares(q, first_image, images, out) writes [images, k] shares and
// get_index(q, b, j) tells n, or -1 for none. False if it is anything else. Threads share out the columns, so no two
// write the same number and the order of all sums is fixed.
template <class E, class GetShares, class GetIndex>
bool scatter_gradients(const E* anchors, const E* queries, AnchorShape shape, Compute<E>* grad_anchors,
                       Compute<E>* grad_queries, int threads, const GetShares& get_shares, const GetIndex& get_index) {
    using T = Compute<E>;
    const auto scatter = CPGR_SIMD(scatter_gradients<T>);
    const int64_t columns = CPGR_SIMD(gradient_columns<T>)(), width = shape.width, k = shape.k;
    const int64_t block_queries = std::min(shape.queries, kBlockQueries);
    const int64_t block_images = std::min(shape.images, kBlockImages);
    const int64_t stride = block_images * k, most_slots = std::min(shape.anchors, block_queries * k);
    if (block_queries == 0 || most_slots == 0 || width == 0) {
        std::fill_n(grad_anchors, shape.images * shape.anchors * width, T(0));
        std::fill_n(grad_queries, shape.queries * width, T(0));
        return true;
    }
    if (block_images == 0) {
        std::fill_n(grad_queries, shape.queries * width, T(0));
        return true;
    }
    const int64_t together = std::clamp<int64_t>(kSlots / most_slots, 1, block_images);

    const int64_t parts = std::min<int64_t>(threads, (width + columns - 1) / columns);
    const Buffer<T> shares(block_queries * stride);
    const Buffer<int32_t> slots(block_queries * stride);
    // The anchors of each image that win for some query, in order of appearance, and the slot of each anchor.
    std::vector<int32_t> winners(block_images * most_slots), winner_count(block_images);
    std::vector<int32_t> slot_of(std::min<int64_t>(threads, block_images) * shape.anchors, -1);
    const int64_t per_thread = 2 * (block_queries + together * most_slots) * columns;
    const Buffer<T> scratch(parts * per_thread);
    std::atomic<bool> in_range{true};

    for (int64_t q0 = 0; q0 < shape.queries; q0 += block_queries) {
        const int64_t count = std::min(block_queries, shape.queries - q0);
        for (int64_t b0 = 0; b0 < shape.images; b0 += block_images) {
            const int64_t images = std::min(block_images, shape.images - b0);
            parallel_for(count, (1 << 14) / (images * k) + 1, threads, [&](int64_t begin, int64_t end) {
                for (int64_t q = begin; q < end; ++q) get_shares(q0 + q, b0, images, shares.get() + q * stride);
            });

            std::atomic<int64_t> next_slots{0};
            parallel_for(images, (1 << 14) / (count * k) + 1, threads, [&](int64_t begin, int64_t end) {
                int32_t* const slot = slot_of.data() + next_slots++ * shape.anchors;
                for (int64_t b = begin; b < end; ++b) {
                    // The slots of images that are taken together follow one another.
                    const int32_t base = static_cast<int32_t>(b % together * most_slots);
                    int32_t* const rows = winners.data() + b * most_slots;
                    int32_t found = 0;
                    for (int64_t q = 0; q < count; ++q)
                        for (int64_t j = 0; j < k; ++j) {
                            const int64_t entry = q * stride + b * k + j, n = get_index(q0 + q, b0 + b, j);
                            if (n < 0 || n >= shape.anchors) {
                                if (n != -1) in_range = false;
                                // Adds nothing, to whatever is there.
                                shares.get()[entry] = 0;
                                slots.get()[entry] = base;
                                continue;
                            }
                            if (slot[n] < 0) {
                                rows[found] = static_cast<int32_t>(n);
                                slot[n] = found++;
                            }
                            slots.get()[entry] = base + slot[n];
                        }
                    for (int32_t s = 0; s < found; ++s) slot[rows[s]] = -1;
                    winner_count[b] = found;
                    if (q0 == 0 && found < shape.anchors)
                        std::fill_n(grad_anchors + (b0 + b) * shape.anchors * width, shape.anchors * width, T(0));
                }
            });
            if (!in_range) return false;

            std::atomic<int64_t> next_scratch{0};
            parallel_for((width + columns - 1) / columns, 1, static_cast<int>(parts), [&](int64_t begin, int64_t end) {
                T* const q_columns = scratch.get() + next_scratch++ * per_thread;
                T* const q_grads = q_columns + block_queries * columns;
                T* const a_columns = q_grads + block_queries * columns;
                T* const a_grads = a_columns + together * most_slots * columns;
                for (int64_t chunk = begin; chunk < end; ++chunk) {
                    const int64_t d0 = chunk * columns, filled = std::min(columns, width - d0);
                    const auto take = [&](const auto* from, T* to) {
                        for (int64_t d = 0; d < filled; ++d) to[d] = widen(from[d]);
                        for (int64_t d = filled; d < columns; ++d) to[d] = 0;
                    };
                    for (int64_t q = 0; q < count; ++q) {
                        take(queries + (q0 + q) * width + d0, q_columns + q * columns);
                        if (b0)
                            take(grad_queries + (q0 + q) * width + d0, q_grads + q * columns);
                        else
                            std::fill_n(q_grads + q * columns, columns, T(0));
                    }
                    for (int64_t b = 0; b < images; b += together) {
                        const int64_t now = std::min(together, images - b);
                        const auto each_winner = [&](const auto& body) {
                            for (int64_t i = 0; i < now; ++i)
                                for (int64_t s = 0; s < winner_count[b + i]; ++s) {
                                    const int64_t n = winners[(b + i) * most_slots + s];
                                    body(((b0 + b + i) * shape.anchors + n) * width + d0,
                                         (i * most_slots + s) * columns);
                                }
                        };
                        // A slot that no winner has may still be read, times zero.
                        std::fill_n(a_columns, columns, T(0));
                        for (int64_t i = 0; i < now; ++i) std::fill_n(a_columns + i * most_slots * columns, columns, T(0));
                        each_winner([&](int64_t row, int64_t slot) {
                            take(anchors + row, a_columns + slot);
                            std::fill_n(a_grads + slot, columns, T(0));
                        });
                        scatter(shares.get() + b * k, slots.get() + b * k, stride, count, now * k, a_columns, q_columns,
                                a_grads, q_grads);
                        each_winner([&](int64_t row, int64_t slot) {
                            T* const to = grad_anchors + row;
                            if (q0 == 0)
                                std::copy_n(a_grads + slot, filled, to);
                            else
                                for (int64_t d = 0; d < filled; ++d) to[d] += a_grads[slot + d];
                        });
                    }
                    for (int64_t q = 0; q < count; ++q)
                        std::copy_n(q_grads + q * columns, filled, grad_queries + (q0 + q) * width + d0);
                }
            });
        }
    }
    return true;
}

}  // namespace cpgr
