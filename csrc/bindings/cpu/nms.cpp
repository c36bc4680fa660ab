#include "../../cpu/nms.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_nms(pybind11::module_& m) {
    // `idxs` 0: all boxes are of one class.
    m.def("nms", [](bool wide_boxes, bool wide_scores, Address boxes, Address scores, Address idxs, int64_t count,
                    double iou_threshold, Address keep) {
        return with_type(wide_boxes, [&](auto zero) {
            using T = decltype(zero);
            return with_type(wide_scores, [&](auto score) {
                using S = decltype(score);
                return nms<T, S>(at<T>(boxes), at<S>(scores), at<int64_t>(idxs), count, iou_threshold,
                                 at<int64_t>(keep));
            });
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
