// cpgr_kernels._C: the CPU kernels on raw addresses. Nothing is checked here: the Python operators check shapes, types
// and devices and hand over contiguous memory. `wide` says double, else float.
#include <pybind11/stl.h>

#include "../../cpu/isa.h"
#include "../common.h"

// CPGR_OPS is X(name) for every op in CMakeLists.txt's list; each is bound in <name>.cpp beside this file.
namespace cpgr::cpu_bindings {
#define X(op) void bind_##op(pybind11::module_& m);
CPGR_OPS
#undef X
}  // namespace cpgr::cpu_bindings

PYBIND11_MODULE(_C, m) {
    m.attr("version") = CPGR_VERSION;
    m.attr("compiler") = CPGR_COMPILER;
    m.attr("cuda_status") = CPGR_CUDA_STATUS;
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("isa", [] { return cpgr::isa_name(cpgr::current_isa()); });
    m.def("multiplies_bf16", &cpgr::multiplies_bf16);
    m.def("supported_isas", &cpgr::supported_isas);
    m.def("use_isa", &cpgr::use_isa);

#define X(op) cpgr::cpu_bindings::bind_##op(m);
    CPGR_OPS
#undef X
}
