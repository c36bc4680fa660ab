// cpgr_kernels._cuda: the CUDA kernels on raw addresses, a device index and a stream as an integer. It imports without
// a driver. Nothing is checked here: the Python operators do, and they allocate every buffer.
#include "../cuda/box_iou.h"
#include "../cuda/nms.h"
#include "common.h"

namespace {

using namespace cpgr;

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

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.attr("version") = CPGR_VERSION;
    m.attr("toolkit") = CPGR_CUDA_TOOLKIT;
    m.attr("architectures") = CPGR_CUDA_ARCHITECTURES;

    bind_box_iou(m);
    bind_nms(m);
}
