#include "../../cuda/box_match.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_box_match(pybind11::module_& m) {
    m.def("box_match", [](bool wide, Address boxes1, Address boxes2, int64_t batch, int64_t rows, int64_t count,
                          Address keys, Address iou1, Address index1, Address iou2, Address index2, int device,
                          Address stream) {
        const cuda::Place place{device, stream};
        if (wide)
            cuda::box_match(at<const double>(boxes1), at<const double>(boxes2), batch, rows, count, at<double>(iou1),
                            at<int64_t>(index1), at<double>(iou2), at<int64_t>(index2), place);
        else
            cuda::box_match(at<const float>(boxes1), at<const float>(boxes2), batch, rows, count, at<uint64_t>(keys),
                            at<float>(iou1), at<int64_t>(index1), at<float>(iou2), at<int64_t>(index2), place);
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
