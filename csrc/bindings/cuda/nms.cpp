#include "../../cuda/nms.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_nms(pybind11::module_& m) {
    m.def("nms_words", &cuda::nms_words);
    // `idxs` 0: all boxes are of one class.
    m.def("nms", [](bool wide, Address boxes, Address order, Address idxs, int64_t count, double iou_threshold,
                    Address scratch, Address keep, Address kept, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::nms<T>(at<T>(boxes), at<int64_t>(order), at<int64_t>(idxs), count, iou_threshold,
                         at<uint64_t>(scratch), at<int64_t>(keep), at<int64_t>(kept), {device, stream});
        });
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
