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
    // `counts` 0: all boxes are real.
    m.def("nms_padded", [](bool wide_boxes, bool wide_scores, Address boxes, Address scores, Address idxs,
                           Address counts, int64_t batch, int64_t count, double iou_threshold, bool has_least,
                           double score_threshold, int64_t most, Address indices, Address kept, int threads) {
        with_type(wide_boxes, [&](auto zero) {
            using T = decltype(zero);
            with_type(wide_scores, [&](auto score) {
                using S = decltype(score);
                nms_padded<T, S>(at<T>(boxes), at<S>(scores), at<int64_t>(idxs), at<int64_t>(counts), batch, count,
                                 iou_threshold, has_least ? &score_threshold : nullptr, most, at<int64_t>(indices),
                                 at<int64_t>(kept), threads);
            });
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
