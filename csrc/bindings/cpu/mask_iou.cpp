#include "../../cpu/mask_iou.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_mask_iou(pybind11::module_& m) {
    const auto bind = [&](const char* name, auto kernel) {
        m.def(name, [kernel](Address bits1, Address areas1, Address boxes1, int64_t count1, Address bits2,
                             Address areas2, Address boxes2, int64_t count2, int64_t height, int64_t width,
                             Address crowd, Address out, int threads) {
            const PackedMasks a = {at<uint64_t>(bits1), at<int64_t>(areas1), at<Extent>(boxes1), count1};
            const PackedMasks b = {at<uint64_t>(bits2), at<int64_t>(areas2), at<Extent>(boxes2), count2};
            kernel(a, b, height, width, at<uint8_t>(crowd), at<double>(out), threads);
        }, NoGil());
    };
    // `crowd` 0: no mask is one.
    bind("mask_iou", &mask_iou);
    bind("mask_iou_pairs", &mask_iou_pairs);
}

}  // namespace cpgr::cpu_bindings
