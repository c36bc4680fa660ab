#include "../../cpu/anchors.h"

#include <pybind11/stl.h>

#include <array>

#include "../common.h"

namespace cpgr::cpu_bindings {
namespace {

using Sizes = std::array<int64_t, 5>;

AnchorShape anchor_shape(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }
MaxsimShape maxsim_shape(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

// Calls `body` with a zero of the element type: 0 float, 1 double, 2 bfloat16.
template <class Body>
auto with_element(int type, const Body& body) {
    return type == 2 ? body(BF16{}) : type == 1 ? body(double{0}) : body(float{0});
}

// Calls `body` with a zero of the type that winners are kept in.
template <class Body>
auto with_index(const Sizes& sizes, const Body& body) {
    return sizes[2] <= INT16_MAX ? body(int16_t{0}) : body(int32_t{0});
}

}  // namespace

void bind_anchors(pybind11::module_& m) {
    // Sizes of the anchor ops: queries, images, anchors, width, k. Null is 0.
    m.def("anchor_scores", [](int type, Address anchors, Address queries, Sizes sizes, Address values, Address indices,
                              int threads) {
        with_element(type, [&](auto zero) {
            using E = decltype(zero);
            anchor_scores<E>(at<E>(anchors), at<E>(queries), anchor_shape(sizes), at<Compute<E>>(values),
                             at<int32_t>(indices), threads);
        });
    }, NoGil());
    m.def("anchor_scores_backward", [](int type, Address grad, Address anchors, Address queries, Address indices,
                                       Sizes sizes, Address grad_anchors, Address grad_queries, int threads) {
        return with_element(type, [&](auto zero) {
            using E = decltype(zero);
            return anchor_scores_backward<E>(at<Compute<E>>(grad), at<E>(anchors), at<E>(queries),
                                             at<int32_t>(indices), anchor_shape(sizes), at<Compute<E>>(grad_anchors),
                                             at<Compute<E>>(grad_queries), threads);
        });
    }, NoGil());
    m.def("anchor_contrast", [](int type, Address anchors, Address queries, Address positive, Address image_ids,
                                Sizes sizes, double scale, Address losses, Address lse, Address values,
                                Address indices, int threads) {
        with_element(type, [&](auto zero) {
            using E = decltype(zero);
            with_index(sizes, [&](auto index) {
                using I = decltype(index);
                anchor_contrast<E, I>(at<E>(anchors), at<E>(queries), at<int64_t>(positive), at<int64_t>(image_ids),
                                      anchor_shape(sizes), scale, at<Compute<E>>(losses), at<Compute<E>>(lse),
                                      at<Compute<E>>(values), at<I>(indices), threads);
            });
        });
    }, NoGil());
    m.def("anchor_contrast_backward", [](int type, Address grad_losses, Address anchors, Address queries,
                                         Address positive, Address image_ids, Address lse, Address values,
                                         Address indices, Sizes sizes, double scale, Address grad_anchors,
                                         Address grad_queries, int threads) {
        return with_element(type, [&](auto zero) {
            using E = decltype(zero);
            return with_index(sizes, [&](auto index) {
                using I = decltype(index);
                return anchor_contrast_backward<E, I>(
                    at<Compute<E>>(grad_losses), at<E>(anchors), at<E>(queries), at<int64_t>(positive),
                    at<int64_t>(image_ids), at<Compute<E>>(lse), at<Compute<E>>(values), at<I>(indices),
                    anchor_shape(sizes), scale, at<Compute<E>>(grad_anchors), at<Compute<E>>(grad_queries), threads);
            });
        });
    }, NoGil());
    // Sizes: queries, tokens, documents, length, width.
    m.def("maxsim", [](int type, Address queries, Address documents, Address query_mask, Address document_mask,
                       Sizes sizes, Address scores, Address indices, int threads) {
        with_element(type, [&](auto zero) {
            using E = decltype(zero);
            maxsim<E>(at<E>(queries), at<E>(documents), at<uint8_t>(query_mask), at<uint8_t>(document_mask),
                      maxsim_shape(sizes), at<Compute<E>>(scores), at<int32_t>(indices), threads);
        });
    }, NoGil());
    m.def("maxsim_backward", [](int type, Address grad, Address queries, Address documents, Address indices,
                                Sizes sizes, Address grad_queries, Address grad_documents, int threads) {
        return with_element(type, [&](auto zero) {
            using E = decltype(zero);
            return maxsim_backward<E>(at<Compute<E>>(grad), at<E>(queries), at<E>(documents), at<int32_t>(indices),
                                      maxsim_shape(sizes), at<Compute<E>>(grad_queries),
                                      at<Compute<E>>(grad_documents), threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
