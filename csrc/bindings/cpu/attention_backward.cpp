#include "attention_input.h"

namespace cpgr::cpu_bindings {

void bind_attention_backward(pybind11::module_& m) {
    // given: grad_out, grad_map (0: none); found: grad_q, grad_k, grad_v (0: none). grad_strides: grad_out's and theirs.
    m.def("attention_backward", [](const std::string& type, const std::array<Address, 6>& tensors,
                                   const std::array<int64_t, 8>& sizes, const std::array<Strides, 3>& strides,
                                   const std::array<int64_t, 4>& mask_stride, int mask_kind, bool causal,
                                   double scale, const std::array<Address, 2>& given,
                                   const std::array<Address, 3>& found, const std::array<Strides, 4>& grad_strides,
                                   int threads) {
        with_types(type, [&](auto zero, auto stored) {
            using T = decltype(zero);
            using S = decltype(stored);
            AttentionGradients<T, S> to{};
            to.grad_out = at<const S>(given[0]);
            to.grad_map = at<const T>(given[1]);
            to.grad_q = at<T>(found[0]);
            to.grad_k = at<T>(found[1]);
            to.grad_v = at<T>(found[2]);
            put(grad_strides[0], to.grad_out_stride);
            put(grad_strides[1], to.grad_q_stride);
            put(grad_strides[2], to.grad_k_stride);
            put(grad_strides[3], to.grad_v_stride);
            attention_backward<T, S>(input<T, S>(tensors, sizes, strides, mask_stride, mask_kind, causal, scale), to,
                                  threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
