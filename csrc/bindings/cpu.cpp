// cpgr_kernels._C: the CPU kernels on raw addresses. Nothing is checked here: the Python operators check shapes, types
// and devices and hand over contiguous memory. `wide` says double, else float.
#include <pybind11/stl.h>

#include "../cpu/box_iou.h"
#include "../cpu/isa.h"
#include "../cpu/nms.h"
#include "common.h"

namespace {

using namespace cpgr;

void bind_box_iou(pybind11::module_& m) {
    m.def("box_iou", [](bool wide, Address boxes1, Address boxes2, int64_t batch, int64_t rows, int64_t count,
                        Address out, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou<T>(at<T>(boxes1), at<T>(boxes2), batch, rows, count, at<T>(out), threads);
        });
    }, NoGil());
    m.def("box_iou_pairs", [](bool wide, Address boxes1, Address boxes2, int64_t count, Address out, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_pairs<T>(at<T>(boxes1), at<T>(boxes2), count, at<T>(out), threads);
        });
    }, NoGil());
    m.def("box_iou_backward", [](bool wide, Address grad, Address boxes1, Address boxes2, int64_t batch, int64_t rows,
                                 int64_t count, Address grad1, Address grad2, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_backward<T>(at<T>(grad), at<T>(boxes1), at<T>(boxes2), batch, rows, count, at<T>(grad1),
                                at<T>(grad2), threads);
        });
    }, NoGil());
    m.def("box_iou_pairs_backward", [](bool wide, Address grad, Address boxes1, Address boxes2, int64_t count,
                                       Address grad1, Address grad2, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_pairs_backward<T>(at<T>(grad), at<T>(boxes1), at<T>(boxes2), count, at<T>(grad1), at<T>(grad2),
                                      threads);
        });
    }, NoGil());
}

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

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.attr("version") = CPGR_VERSION;
    m.attr("compiler") = CPGR_COMPILER;
    m.attr("cuda_status") = CPGR_CUDA_STATUS;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("isa", [] { return isa_name(current_isa()); });
    m.def("supported_isas", &supported_isas);
    m.def("use_isa", &use_isa);

    bind_box_iou(m);
    bind_nms(m);
}
