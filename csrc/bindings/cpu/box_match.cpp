#include "../../cpu/box_match.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_box_match(pybind11::module_& m) {
    m.def("box_match", [](bool wide, Address boxes1, Address boxes2, int64_t batch, int64_t rows, int64_t count,
                          Address iou1, Address index1, Address iou2, Address index2, int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            box_match(at<const T>(boxes1), at<const T>(boxes2), batch, rows, count, at<T>(iou1), at<int64_t>(index1),
                      at<T>(iou2), at<int64_t>(index2), threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
