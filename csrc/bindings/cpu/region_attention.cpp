#include "../../cpu/region_attention.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_region_attention(pybind11::module_& m) {
    m.def("region_attention", [](bool wide, Address maps, int64_t map_step, Address boxes, int64_t box_step,
                                 int64_t batch, int64_t queries, int64_t count, int64_t rows, int64_t columns,
                                 double gamma, double width, double height, double least_area, Address out,
                                 int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            region_attention<T>(at<T>(maps), map_step, at<T>(boxes), box_step, batch, queries, count,
                                {rows, columns, width, height, gamma, least_area}, at<T>(out), threads);
        });
    }, NoGil());
    m.def("region_attention_backward", [](bool wide, Address grad, Address boxes, int64_t box_step, int64_t batch,
                                          int64_t queries, int64_t count, int64_t rows, int64_t columns, double gamma,
                                          double width, double height, double least_area, Address grad_maps,
                                          int threads) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            region_attention_backward<T>(at<T>(grad), at<T>(boxes), box_step, batch, queries, count,
                                         {rows, columns, width, height, gamma, least_area}, at<T>(grad_maps), threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
