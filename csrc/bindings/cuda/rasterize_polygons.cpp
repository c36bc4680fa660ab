#include "../../cuda/rasterize_polygons.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_rasterize_polygons(pybind11::module_& m) {
    m.def("rasterize_polygons", [](bool wide, Address points, int64_t total, Address starts, Address lengths,
                                   Address members, Address ends, int64_t count, int64_t height, int64_t width,
                                   Address out, int device, Address stream) {
        with_type(wide, [&](auto zero) {
            using T = decltype(zero);
            cuda::rasterize_polygons<T>(at<T>(points), total, at<int64_t>(starts), at<int64_t>(lengths),
                                        at<int64_t>(members), at<int64_t>(ends), count, height, width,
                                        at<uint8_t>(out), {device, stream});
        });
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
