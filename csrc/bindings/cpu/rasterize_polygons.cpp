#include "../../cpu/rasterize_polygons.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_rasterize_polygons(pybind11::module_& m) {
    m.def("rasterize_polygons", [](bool wide, Address points, int64_t total, Address starts, Address lengths,
                                   Address instances, int64_t polygons, int64_t count, int64_t height, int64_t width,
                                   bool cleared, Address out, int threads) {
        return with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            return rasterize_polygons<T>(at<T>(points), total, at<int64_t>(starts), at<int64_t>(lengths),
                                         at<int64_t>(instances), polygons, count, height, width, cleared,
                                         at<uint8_t>(out), threads);
        });
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
