#include "anchors.h"

#include <cmath>
#include <limits>
#include <vector>

#include "best_anchors.h"
#include "scatter_gradients.h"

namespace cpgr {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The best of every image for every query into values and indices [queries, images, k].
template <class E, class I>
void write_best(const E* anchors, const E* queries, AnchorShape shape, Compute<E>* values, I* indices, int threads) {
    using T = Compute<E>;
    const int64_t panel = CPGR_SIMD(panel_queries<T>)(), k = shape.k;
    best_anchors(anchors, queries, shape, nullptr, true, threads,
                 [=](int64_t first_query, int64_t count, int64_t first_image, int64_t images, const T* best,
                     const Index<T>* where) {
                     for (int64_t q = 0; q < count; ++q) {
                         const int64_t to = ((first_query + q) * shape.images + first_image) * k;
                         for (int64_t i = 0; i < images * k; ++i) {
                             values[to + i] = best[i * panel + q];
                             indices[to + i] = static_cast<I>(where[i * panel + q]);
                         }
                     }
                 });
}

// Which images are no negatives of a query: its own and those of the same id.
struct NoNegatives {
    const int64_t *positive, *image_ids;

    // Calls body(image) for those among first .. first + count.
    template <class Body>
    void each(int64_t query, int64_t first, int64_t count, const Body& body) const {
        const int64_t own = positive[query];
        if (!image_ids) {
            if (own >= first && own < first + count) body(own);
            return;
        }
        for (int64_t b = first; b < first + count; ++b)
            if (image_ids[b] == image_ids[own]) body(b);
    }
};

// Z of one query, and by how much it is above its own best score. `row` [images * k] is scratch.
template <class T, class SumExp>
void contrast_row(const T* values, int64_t query, AnchorShape shape, NoNegatives none, T scale, SumExp sum_exp, T* row,
                  T* loss, T* lse) {
    const int64_t entries = shape.images * shape.k;
    const T best = values[none.positive[query] * shape.k] * scale;
    for (int64_t i = 0; i < entries; ++i) row[i] = values[i] * scale;
    none.each(query, 0, shape.images, [&](int64_t b) { std::fill_n(row + b * shape.k, shape.k, -kInfinity<T>); });
    T most = best;
    for (int64_t i = 0; i < entries; ++i) most = row[i] > most ? row[i] : most;
    const T shift = std::isfinite(most) ? most : T(0);
    // In double: where the own anchor leads by far, the loss is the small difference of large numbers.
    const double others = sum_exp(row, entries, T(1), shift, T(0), nullptr), lead = double(best) - shift;
    const double above = std::log1p(others + std::expm1(lead));
    *lse = static_cast<T>(shift + above);
    *loss = static_cast<T>(std::isfinite(most) ? above - lead : double(*lse) - best);
}

}  // namespace

template <class E>
void anchor_scores(const E* anchors, const E* queries, AnchorShape shape, Compute<E>* values, int32_t* indices,
                   int threads) {
    write_best(anchors, queries, shape, values, indices, threads);
}

template <class E>
bool anchor_scores_backward(const Compute<E>* grad, const E* anchors, const E* queries, const int32_t* indices,
                            AnchorShape shape, Compute<E>* grad_anchors, Compute<E>* grad_queries, int threads) {
    const int64_t k = shape.k, row = shape.images * k;
    return scatter_gradients(
        anchors, queries, shape, grad_anchors, grad_queries, threads,
        [=](int64_t q, int64_t b, int64_t images, Compute<E>* out) {
            std::copy_n(grad + q * row + b * k, images * k, out);
        },
        [=](int64_t q, int64_t b, int64_t j) -> int64_t {
            const int64_t n = indices[q * row + b * k + j];
            return n == -1 ? -2 : n;
        });
}

template <class E, class I>
void anchor_contrast(const E* anchors, const E* queries, const int64_t* positive, const int64_t* image_ids,
                     AnchorShape shape, double scale, Compute<E>* losses, Compute<E>* lse, Compute<E>* values,
                     I* indices, int threads) {
    using T = Compute<E>;
    write_best(anchors, queries, shape, values, indices, threads);
    const auto sum_exp = CPGR_SIMD(sum_exp<T>);
    const int64_t row = shape.images * shape.k;
    const Scratch<T> scratch(std::max(1, threads) * row);
    std::atomic<int64_t> next{0};
    parallel_for(shape.queries, (1 << 14) / std::max<int64_t>(row, 1) + 1, threads, [&](int64_t begin, int64_t end) {
        T* const mine = scratch.get() + next++ * row;
        for (int64_t q = begin; q < end; ++q)
            contrast_row(values + q * row, q, shape, NoNegatives{positive, image_ids}, static_cast<T>(scale), sum_exp,
                         mine, losses + q, lse + q);
    });
}

template <class E, class I>
bool anchor_contrast_backward(const Compute<E>* grad_losses, const E* anchors, const E* queries,
                              const int64_t* positive, const int64_t* image_ids, const Compute<E>* lse,
                              const Compute<E>* values, const I* indices, AnchorShape shape, double scale,
                              Compute<E>* grad_anchors, Compute<E>* grad_queries, int threads) {
    using T = Compute<E>;
    const auto sum_exp = CPGR_SIMD(sum_exp<T>);
    const NoNegatives none{positive, image_ids};
    const int64_t k = shape.k, row = shape.images * k;
    return scatter_gradients(
        anchors, queries, shape, grad_anchors, grad_queries, threads,
        [=](int64_t q, int64_t first, int64_t images, T* out) {
            const T weight = static_cast<T>(grad_losses[q] * scale), *const mine = values + q * row;
            sum_exp(mine + first * k, images * k, static_cast<T>(scale), lse[q], weight, out);
            none.each(q, first, images, [&](int64_t b) { std::fill_n(out + (b - first) * k, k, T(0)); });
            const int64_t own = positive[q];
            if (own >= first && own < first + images)
                out[(own - first) * k] = weight * std::expm1(mine[own * k] * static_cast<T>(scale) - lse[q]);
        },
        [=](int64_t q, int64_t b, int64_t j) -> int64_t {
            const int64_t n = indices[q * row + b * k + j];
            return n == -1 ? -2 : n;
        });
}

template <class E>
void maxsim(const E* queries, const E* documents, const uint8_t* query_mask, const uint8_t* document_mask,
            MaxsimShape shape, Compute<E>* scores, int32_t* indices, int threads) {
    using T = Compute<E>;
    const int64_t panel = CPGR_SIMD(panel_queries<T>)(), tokens = shape.tokens;
    const AnchorShape flat = {shape.queries * tokens, shape.documents, shape.length, shape.width, 1};
    std::fill_n(scores, shape.queries * shape.documents, T(0));
    // A query's tokens may lie in two panels, so the queries are not shared out.
    best_anchors(documents, queries, flat, document_mask, false, threads,
                 [=](int64_t first, int64_t count, int64_t first_document, int64_t found, const T* best,
                     const Index<T>* where) {
                     for (int64_t i = 0; i < found; ++i)
                         for (int64_t lane = 0; lane < count; ++lane) {
                             const int64_t q = (first + lane) / tokens, t = (first + lane) % tokens;
                             const int64_t to = q * shape.documents + first_document + i;
                             Index<T> n = where[i * panel + lane];
                             if (query_mask && !query_mask[first + lane]) n = -1;
                             if (n >= 0) scores[to] += best[i * panel + lane];
                             indices[to * tokens + t] = static_cast<int32_t>(n);
                         }
                 });
}

template <class E>
bool maxsim_backward(const Compute<E>* grad, const E* queries, const E* documents, const int32_t* indices,
                     MaxsimShape shape, Compute<E>* grad_queries, Compute<E>* grad_documents, int threads) {
    const int64_t tokens = shape.tokens;
    const AnchorShape flat = {shape.queries * tokens, shape.documents, shape.length, shape.width, 1};
    return scatter_gradients(
        documents, queries, flat, grad_documents, grad_queries, threads,
        [=](int64_t q, int64_t b, int64_t count, Compute<E>* out) {
            std::copy_n(grad + q / tokens * shape.documents + b, count, out);
        },
        [=](int64_t q, int64_t b, int64_t) -> int64_t {
            return indices[(q / tokens * shape.documents + b) * tokens + q % tokens];
        });
}

#define CPGR_INSTANTIATE_CONTRAST(E, I)                                                                              \
    template void anchor_contrast<E, I>(const E*, const E*, const int64_t*, const int64_t*, AnchorShape, double,     \
                                        Compute<E>*, Compute<E>*, Compute<E>*, I*, int);                             \
    template bool anchor_contrast_backward<E, I>(const Compute<E>*, const E*, const E*, const int64_t*,              \
                                                 const int64_t*, const Compute<E>*, const Compute<E>*, const I*,     \
                                                 AnchorShape, double, Compute<E>*, Compute<E>*, int);
#define CPGR_INSTANTIATE(E)                                                                                          \
    CPGR_INSTANTIATE_CONTRAST(E, int16_t)                                                                            \
    CPGR_INSTANTIATE_CONTRAST(E, int32_t)                                                                            \
    template void anchor_scores<E>(const E*, const E*, AnchorShape, Compute<E>*, int32_t*, int);                     \
    template bool anchor_scores_backward<E>(const Compute<E>*, const E*, const E*, const int32_t*, AnchorShape,      \
                                            Compute<E>*, Compute<E>*, int);                                          \
    template void maxsim<E>(const E*, const E*, const uint8_t*, const uint8_t*, MaxsimShape, Compute<E>*, int32_t*,  \
                            int);                                                                                    \
    template bool maxsim_backward<E>(const Compute<E>*, const E*, const E*, const int32_t*, MaxsimShape,             \
                                     Compute<E>*, Compute<E>*, int);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)
CPGR_INSTANTIATE(BF16)

}  // namespace cpgr
