#include "../../cpu/pack_masks.h"

#include "../common.h"

namespace cpgr::cpu_bindings {

void bind_pack_masks(pybind11::module_& m) {
    m.def("pack_masks", [](Address masks, int64_t count, int64_t height, int64_t width, Address bits, Address areas,
                           Address boxes, int threads) {
        pack_masks(at<uint8_t>(masks), count, height, width, at<uint64_t>(bits), at<int64_t>(areas), at<Extent>(boxes),
                   threads);
    }, NoGil());
    m.def("pack_rle", [](Address runs, Address starts, Address numbers, int64_t count, int64_t height, int64_t width,
                         Address bits, Address areas, Address boxes, Address faults, int threads) {
        pack_rle(at<uint8_t>(runs), at<int64_t>(starts), at<uint8_t>(numbers), count, height, width,
                 at<uint64_t>(bits), at<int64_t>(areas), at<Extent>(boxes), at<uint8_t>(faults), threads);
    }, NoGil());
}

}  // namespace cpgr::cpu_bindings
