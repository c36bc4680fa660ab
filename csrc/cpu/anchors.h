// Scores of anchors and queries, RefCLIP's contrast and late interaction, with their gradients. Elements E are float,
// double or BF16; everything that is computed is Compute<E>. Contiguous arrays; results are written whole.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace cpgr {

// queries [queries, width] against the anchors [images, anchors, width]; the k best of each image.
struct AnchorShape {
    int64_t queries, images, anchors, width, k;
};

// values and indices [queries, images, k].
template <class E>
void anchor_scores(const E* anchors, const E* queries, AnchorShape shape, Compute<E>* values, int32_t* indices,
                   int threads);

// From grad [queries, images, k]. False, and the gradients undefined, if an index is out of range.
template <class E>
bool anchor_scores_backward(const Compute<E>* grad, const E* anchors, const E* queries, const int32_t* indices,
                            AnchorShape shape, Compute<E>* grad_anchors, Compute<E>* grad_queries, int threads);

// positive [queries]: the image of each, in range. image_ids [images] or null: images of the same id are no negatives
// of each other. losses and lse [queries], values and indices [queries, images, k]; I is int16_t or int32_t.
template <class E, class I>
void anchor_contrast(const E* anchors, const E* queries, const int64_t* positive, const int64_t* image_ids,
                     AnchorShape shape, double scale, Compute<E>* losses, Compute<E>* lse, Compute<E>* values,
                     I* indices, int threads);

template <class E, class I>
bool anchor_contrast_backward(const Compute<E>* grad_losses, const E* anchors, const E* queries,
                              const int64_t* positive, const int64_t* image_ids, const Compute<E>* lse,
                              const Compute<E>* values, const I* indices, AnchorShape shape, double scale,
                              Compute<E>* grad_anchors, Compute<E>* grad_queries, int threads);

// queries [queries, tokens, width] against documents [documents, length, width].
struct MaxsimShape {
    int64_t queries, tokens, documents, length, width;
};

// Masks are null or bytes that are not 0 at tokens that count. scores [queries, documents]; indices [queries,
// documents, tokens], -1 where nothing counts.
template <class E>
void maxsim(const E* queries, const E* documents, const uint8_t* query_mask, const uint8_t* document_mask,
            MaxsimShape shape, Compute<E>* scores, int32_t* indices, int threads);

template <class E>
bool maxsim_backward(const Compute<E>* grad, const E* queries, const E* documents, const int32_t* indices,
                     MaxsimShape shape, Compute<E>* grad_queries, Compute<E>* grad_documents, int threads);

}  // namespace cpgr
