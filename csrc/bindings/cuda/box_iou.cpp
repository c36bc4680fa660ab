#include "../../cuda/box_iou.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_box_iou(pybind11::module_& m) {
    m.def("box_iou", [](bool wide, Address boxes1, Address boxes2, int64_t batch, int64_t rows, int64_t count,
                        Address out, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::box_iou<T>(at<T>(boxes1), at<T>(boxes2), batch, rows, count, at<T>(out), {device, stream});
        });
    }, NoGil());
    m.def("box_iou_pairs", [](bool wide, Address boxes1, Address boxes2, int64_t count, Address out, int device,
                              Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::box_iou_pairs<T>(at<T>(boxes1), at<T>(boxes2), count, at<T>(out), {device, stream});
        });
    }, NoGil());
    m.def("box_iou_backward", [](bool wide, Address grad, Address boxes1, Address boxes2, int64_t batch, int64_t rows,
                                 int64_t count, Address grad1, Address grad2, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::box_iou_backward<T>(at<T>(grad), at<T>(boxes1), at<T>(boxes2), batch, rows, count, at<T>(grad1),
                                      at<T>(grad2), {device, stream});
        });
    }, NoGil());
    m.def("box_iou_pairs_backward", [](bool wide, Address grad, Address boxes1, Address boxes2, int64_t count,
                                       Address grad1, Address grad2, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::box_iou_pairs_backward<T>(at<T>(grad), at<T>(boxes1), at<T>(boxes2), count, at<T>(grad1),
                                            at<T>(grad2), {device, stream});
        });
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
