// Softmax attention, and the mean over heads of its weights in chosen rows (reference.attention_with_map). Tensors may
// have any strides but in their last dimension, which is contiguous; strides are in elements.
#pragma once

#include <cstdint>

namespace cpgr {

enum class Mask : int { none, boolean, number };

// The upper half of a float.
struct Bfloat16 {
    uint16_t bits;
};

// What is read. T, float or double, is the type of sums and of all that is written; S that of q, k and v: T, or Bfloat16
// with float.
template <class T, class S>
struct AttentionInput {
    const S *q, *k, *v;                             // [B, H, T, D], [B, G, S, D], [B, G, S, E]; v may be null
    int64_t q_stride[3], k_stride[3], v_stride[3];  // batch, head, row
    int64_t batch, heads, groups, queries, keys, width, value_width;
    const int64_t* rows;  // [B, row_count], in 0..T-1, or null: all T
    int64_t row_count;
    const uint8_t* key_padding;  // [B, S], not 0 at keys left out, or null
    const void* mask;            // [B, H, T, S], bytes (0: left out) or T (added)
    int64_t mask_stride[4];
    Mask mask_kind;
    bool causal;
    T scale;
};

template <class T>
struct AttentionOutput {
    T* out;  // [B, H, T, E]; null where v is
    int64_t out_stride[3];
    T* map;  // [B, row_count, S]
    T* lse;  // [B, H, T]; without v the chosen rows' alone
};

template <class T, class S>
void attention_forward(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int threads);

template <class T, class S>
struct AttentionGradients {
    const S* grad_out;  // [B, H, T, E]; may be null
    const T* grad_map;  // [B, row_count, S]; may be null
    int64_t grad_out_stride[3];
    T *grad_q, *grad_k, *grad_v;   // grad_v is null where v is
    int64_t grad_q_stride[3], grad_k_stride[3], grad_v_stride[3];
};

template <class T, class S>
void attention_backward(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int threads);

}  // namespace cpgr
