#include "../../cuda/nms.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_nms(pybind11::module_& m) {
    m.attr("nms_small_boxes") = cuda::kNmsSmall;
    m.def("nms_words", &cuda::nms_words);
    // `idxs` 0: all boxes are of one class. `counts` or `real` 0: all boxes are real.
    m.def("nms_small", [](Address boxes, Address idxs, int64_t batch, int64_t count, double iou_threshold,
                          int64_t most, Address indices, Address kept, Address scores, Address counts, bool has_least,
                          double score_threshold, int device, Address stream) {
        const cuda::NmsImages<float> images = {at<float>(boxes), at<int64_t>(idxs), batch, count, iou_threshold, most,
                                               at<int64_t>(indices), at<int64_t>(kept)};
        cuda::nms_small(images, at<float>(scores), at<int64_t>(counts), has_least ? &score_threshold : nullptr,
                        {device, stream});
    }, NoGil());
    m.def("nms_large", [](bool wide, Address boxes, Address idxs, int64_t batch, int64_t count, double iou_threshold,
                          int64_t most, Address indices, Address kept, Address order, Address real, Address scratch,
                          int64_t at_once, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            const cuda::NmsImages<T> images = {at<T>(boxes), at<int64_t>(idxs), batch, count, iou_threshold, most,
                                               at<int64_t>(indices), at<int64_t>(kept)};
            cuda::nms_large<T>(images, at<int64_t>(order), at<int64_t>(real), at<uint64_t>(scratch), at_once,
                               {device, stream});
        });
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
