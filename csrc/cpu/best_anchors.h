// The loop that anchor_scores, anchor_contrast and maxsim share: products of all anchors with all queries, a tile of
// anchors and a panel of queries at a time, of which only the best of each image are kept.
#pragma once

#include <algorithm>
#include <cstring>

#include "anchors.h"
#include "scratch.h"
#include "parallel.h"
#include "simd/anchors.h"

namespace cpgr {

// Anchors of a tile: with 512 features they fill a quarter of a second-level cache, as a panel of queries does.
constexpr int64_t kTileRows = 132;
// Below this many multiplications a second thread costs more than it saves.
constexpr int64_t kProductsPerThread = 1 << 20;

// Calls emit(first_query, queries, first_image, images, best, where) once for every part: of image i and entry j, the
// scores best[(i * k + j) * panel + q] of the queries first_query + q, and the anchors where they are. `counts` [images,
// anchors] or null: anchors that are 0 there are left out. Where nothing is found, `where` is -1. Threads share out
// the images and, with `split_queries`, the queries too.
template <class E, class Emit>
void best_anchors(const E* anchors, const E* queries, AnchorShape shape, const uint8_t* counts, bool split_queries,
                  int threads, const Emit& emit) {
    using T = Compute<E>;
    if (shape.queries == 0 || shape.images == 0) return;
    const auto pack_panel = CPGR_SIMD(pack_panel<E>);
    const auto score = CPGR_SIMD(score<E>);
    const auto start_best = CPGR_SIMD(start_best<T>);
    const auto merge_best = CPGR_SIMD(merge_best<T>);
    const int64_t panel = CPGR_SIMD(panel_queries<T>)(), bytes = CPGR_SIMD(panel_bytes<E>)(shape.width);
    const int64_t panels = (shape.queries + panel - 1) / panel;
    const auto queries_in = [&](int64_t p) { return std::min(panel, shape.queries - p * panel); };

    const Scratch<char> packed(panels * bytes);
    parallel_for(panels, kProductsPerThread / std::max<int64_t>(panel * shape.width * 16, 1) + 1, threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t p = begin; p < end; ++p)
                         pack_panel(queries + p * panel * shape.width, queries_in(p), shape.width,
                                    packed.get() + p * bytes);
                 });

    // A tile is either several whole images, or a part of one whose best so far wait for its next part. Eight images
    // of two winners fill a cache line of the result.
    const int64_t anchors_each = std::max<int64_t>(shape.anchors, 1);
    int64_t tile_images = std::max<int64_t>(1, (kTileRows + anchors_each / 2) / anchors_each);
    if (tile_images > 8) tile_images = tile_images / 8 * 8;
    const int64_t tile_rows = tile_images > 1 || shape.anchors <= 2 * kTileRows ? tile_images * shape.anchors : kTileRows;
    const bool whole = tile_rows >= shape.anchors;
    const int64_t kept = tile_images * shape.k * panel;

    const int64_t products = shape.images * shape.anchors * shape.width * shape.queries;
    const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(threads, products / kProductsPerThread));
    const int64_t image_parts = std::min(wanted, shape.images);
    const int64_t query_parts = split_queries ? std::min(wanted / image_parts, panels) : 1;
    const int64_t parts = image_parts * query_parts, most_panels = (panels + query_parts - 1) / query_parts;
    const int64_t stages = whole ? 1 : most_panels;
    const Scratch<T> all_scores(parts * tile_rows * panel), all_best(parts * stages * kept);
    const Scratch<Index<T>> all_where(parts * stages * kept);

    parallel_for(parts, 1, static_cast<int>(parts), [&](int64_t part, int64_t) {
        T* const scores = all_scores.get() + part * tile_rows * panel;
        T* const first_best = all_best.get() + part * stages * kept;
        Index<T>* const first_where = all_where.get() + part * stages * kept;
        const int64_t i = part / query_parts, j = part % query_parts;
        const int64_t end_image = shape.images * (i + 1) / image_parts;
        const int64_t begin_panel = panels * j / query_parts, end_panel = panels * (j + 1) / query_parts;

        int64_t images = 0;
        for (int64_t image = shape.images * i / image_parts; image < end_image; image += images) {
            images = std::min(tile_images, end_image - image);
            int64_t rows = 0;
            // One turn even without anchors, so that nothing is emitted as nothing.
            for (int64_t row = 0; row == 0 || row < images * shape.anchors; row += rows) {
                rows = whole ? images * shape.anchors : std::min(tile_rows, shape.anchors - row);
                const int64_t at = image * shape.anchors + row;
                for (int64_t p = begin_panel; p < end_panel; ++p) {
                    const int64_t stage = whole ? 0 : p - begin_panel, count = queries_in(p);
                    T* const best = first_best + stage * kept;
                    Index<T>* const where = first_where + stage * kept;
                    if (row == 0) start_best(images * shape.k, best, where);
                    score(anchors + at * shape.width, rows, shape.width, packed.get() + p * bytes, count, scores);
                    const int64_t rows_each = whole ? shape.anchors : rows;
                    for (int64_t n = 0; n < images; ++n)
                        merge_best(scores + n * rows_each * panel, rows_each, row, count,
                                   counts ? counts + at + n * rows_each : nullptr, shape.k,
                                   best + n * shape.k * panel, where + n * shape.k * panel);
                    if (row + rows >= images * shape.anchors)
                        emit(p * panel, count, image, images, best, where);
                }
                if (rows == 0) break;
            }
        }
    });
}

}  // namespace cpgr
