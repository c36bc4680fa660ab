// Where a kernel runs, and how a failed launch is told.
#pragma once

#include <cstdint>

namespace cpgr::cuda {

struct Place {
    int device;
    std::uintptr_t stream;  // a cudaStream_t, as torch gives it
};

}  // namespace cpgr::cuda

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace cpgr::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// This library's own CUDA runtime must be told the device: torch's choice of one is not shared with it.
inline cudaStream_t enter(const Place& place, const char* what) {
    check(cudaSetDevice(place.device), what);
    return reinterpret_cast<cudaStream_t>(place.stream);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid dimension; kernels stride over what is beyond it.
inline unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(blocks < 65535 ? blocks : 65535); }

}  // namespace cpgr::cuda
#endif
