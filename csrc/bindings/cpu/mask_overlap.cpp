#include "../../cpu/mask_overlap.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_mask_overlap(pybind11::module_& m) {
    m.def("mask_overlap", [](bool wide, bool bytes, Address responses, Address masks, int64_t batch, int64_t maps,
                             int64_t count, int64_t pixels, double threshold, Address inter, Address response,
                             Address mask, Address hard, Address peak, Address argmax, int threads) {
        with_types(wide, bytes, [&](auto zero, auto byte) {
            using T = decltype(zero);
            using M = decltype(byte);
            mask_overlap<T, M>(at<T>(responses), at<M>(masks), {batch, maps, count, pixels}, static_cast<T>(threshold),
                               at<T>(inter), at<T>(response), at<T>(mask), at<T>(hard), at<T>(peak),
                               at<int64_t>(argmax), threads);
        });
    }, NoGil());
    m.def("mask_overlap_backward", [](bool wide, bool bytes, Address grad_inter, Address grad_response,
                                      Address grad_peak, Address masks, Address argmax, int64_t batch, int64_t maps,
                                      int64_t count, int64_t pixels, Address grad_responses, int threads) {
        with_types(wide, bytes, [&](auto zero, auto byte) {
            using T = decltype(zero);
            using M = decltype(byte);
            mask_overlap_backward<T, M>(at<T>(grad_inter), at<T>(grad_response), at<T>(grad_peak), at<M>(masks),
                                        at<int64_t>(argmax), {batch, maps, count, pixels}, at<T>(grad_responses),
                                        threads);
        });
    }, NoGil());
    m.def("mask_overlap_backward_masks", [](bool wide, Address grad_inter, Address grad_mask, Address grad_hard,
                                            Address grad_peak, Address responses, Address argmax, int64_t batch,
                                            int64_t maps, int64_t count, int64_t pixels, double threshold,
                                            Address grad_masks, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            mask_overlap_backward_masks<T>(at<T>(grad_inter), at<T>(grad_mask), at<T>(grad_hard), at<T>(grad_peak),
                                           at<T>(responses), at<int64_t>(argmax), {batch, maps, count, pixels},
                                           static_cast<T>(threshold), at<T>(grad_masks), threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
