#include "attention_input.h"

namespace cpgr::cpu_bindings {

void bind_attention(pybind11::module_& m) {
    m.def("attention_forward", [](const std::string& type, const std::array<Address, 6>& tensors,
                                  const std::array<int64_t, 8>& sizes, const std::array<Strides, 3>& strides,
                                  const std::array<int64_t, 4>& mask_stride, int mask_kind, bool causal, double scale,
                                  Address out, const Strides& out_stride, Address map, Address lse, int threads) {
        with_types(type, [&](auto zero, auto stored) {
            using T = decltype(zero);
            using S = decltype(stored);
            AttentionOutput<T> to{at<T>(out), {}, at<T>(map), at<T>(lse)};
            put(out_stride, to.out_stride);
            attention_forward<T, S>(input<T, S>(tensors, sizes, strides, mask_stride, mask_kind, causal, scale), to,
                                 threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
