#include "../../cuda/pack_masks.h"

#include "../common.h"

namespace cpgr::cuda_bindings {

void bind_pack_masks(pybind11::module_& m) {
    m.def("pack_masks", [](Address masks, int64_t count, int64_t height, int64_t width, Address bits, Address areas,
                           Address boxes, int device, Address stream) {
        cuda::pack_masks(at<uint8_t>(masks), count, height, width, at<uint64_t>(bits), at<int64_t>(areas),
                         at<Extent>(boxes), {device, stream});
    }, NoGil());
}

}  // namespace cpgr::cuda_bindings
