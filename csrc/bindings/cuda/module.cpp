// cpgr_kernels._cuda: the CUDA kernels on raw addresses, a device index and a stream as an integer. It imports without
// a driver. Nothing is checked here: the Python operators do, and they allocate every buffer.
#include "../common.h"

// CPGR_OPS is X(name) for every op in CMakeLists.txt's list; each is bound in <name>.cpp beside this file.
namespace cpgr::cuda_bindings {
#define X(op) void bind_##op(pybind11::module_& m);
CPGR_OPS
#undef X
}  // namespace cpgr::cuda_bindings

PYBIND11_MODULE(_cuda, m) {
    m.attr("version") = CPGR_VERSION;
    m.attr("toolkit") = CPGR_CUDA_TOOLKIT;
    m.attr("architectures") = CPGR_CUDA_ARCHITECTURES;

#define X(op) cpgr::cuda_bindings::bind_##op(m);
    CPGR_OPS
#undef X
}
