// What both bindings of attention take.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>

#include "../../cpu/attention.h"
#include "../common.h"

namespace cpgr::cpu_bindings {

using Strides = std::array<int64_t, 3>;

inline void put(const Strides& from, int64_t* to) { std::copy(from.begin(), from.end(), to); }

// Calls `body` with zeros of the type of the computation and of q, k and v, by the latter's name.
template <class Body>
void with_types(const std::string& type, const Body& body) {
    if (type == "float64")
        body(double{}, double{});
    else if (type == "bfloat16")
        body(float{}, Bfloat16{});
    else
        body(float{}, float{});
}

// tensors: q, k, v, rows, key_padding_mask, attn_mask (0: none). sizes: B, H, G, T, S, D, E, R.
template <class T, class S>
AttentionInput<T, S> input(const std::array<Address, 6>& tensors, const std::array<int64_t, 8>& sizes,
                        const std::array<Strides, 3>& strides, const std::array<int64_t, 4>& mask_stride,
                        int mask_kind, bool causal, double scale) {
    AttentionInput<T, S> in{};
    in.q = at<const S>(tensors[0]);
    in.k = at<const S>(tensors[1]);
    in.v = at<const S>(tensors[2]);
    in.rows = at<const int64_t>(tensors[3]);
    in.key_padding = at<const uint8_t>(tensors[4]);
    in.mask = at<const void>(tensors[5]);
    in.batch = sizes[0];
    in.heads = sizes[1];
    in.groups = sizes[2];
    in.queries = sizes[3];
    in.keys = sizes[4];
    in.width = sizes[5];
    in.value_width = sizes[6];
    in.row_count = sizes[7];
    put(strides[0], in.q_stride);
    put(strides[1], in.k_stride);
    put(strides[2], in.v_stride);
    std::copy(mask_stride.begin(), mask_stride.end(), in.mask_stride);
    in.mask_kind = static_cast<Mask>(mask_kind);
    in.causal = causal;
    in.scale = static_cast<T>(scale);
    return in;
}

}  // namespace cpgr::cpu_bindings
