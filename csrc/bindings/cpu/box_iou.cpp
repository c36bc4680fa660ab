#include "../../cpu/box_iou.h"

#include <string>

#include "../common.h"
#include "../measure.h"

namespace cpgr::cpu_bindings {
namespace {

// The four functions of one measure; `Options` are what the measure takes.
template <class... Options>
void bind_measure(pybind11::module_& m, const std::string& name) {
    m.def(name.c_str(), [](bool wide, Options... options, Address boxes1, Address boxes2, int64_t batch, int64_t rows,
                           int64_t count, Address out, bool fresh, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou(measure_of(zero, options...), at<T>(boxes1), at<T>(boxes2), batch, rows, count, at<T>(out), fresh,
                    threads);
        });
    }, NoGil());
    m.def((name + "_pairs").c_str(), [](bool wide, Options... options, Address boxes1, Address boxes2, int64_t count,
                                        Address out, bool fresh, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_pairs(measure_of(zero, options...), at<T>(boxes1), at<T>(boxes2), count, at<T>(out), fresh,
                          threads);
        });
    }, NoGil());
    m.def((name + "_backward").c_str(), [](bool wide, Options... options, Address grad, Address boxes1, Address boxes2,
                                           int64_t batch, int64_t rows, int64_t count, Address grad1, Address grad2,
                                           int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_backward(measure_of(zero, options...), at<T>(grad), at<T>(boxes1), at<T>(boxes2), batch, rows,
                             count, at<T>(grad1), at<T>(grad2), threads);
        });
    }, NoGil());
    m.def((name + "_pairs_backward").c_str(), [](bool wide, Options... options, Address grad, Address boxes1,
                                                 Address boxes2, int64_t count, Address grad1, Address grad2,
                                                 int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_iou_pairs_backward(measure_of(zero, options...), at<T>(grad), at<T>(boxes1), at<T>(boxes2), count,
                                   at<T>(grad1), at<T>(grad2), threads);
        });
    }, NoGil());
}

}  // namespace

void bind_box_iou(pybind11::module_& m) {
    bind_measure<>(m, "box_iou");
    bind_measure<double>(m, "generalized_box_iou");
}

}  // namespace cpgr::cpu_bindings
