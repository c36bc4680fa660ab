// A loop over [0, count) in contiguous parts, on at most `threads` threads of the OpenMP pool that torch uses too.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cpgr {

// `body(begin, end)` must not throw. `grain` is the least number of iterations that is worth a thread.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    const int64_t parts = std::min<int64_t>(threads, count / std::max<int64_t>(grain, 1));
    if (parts <= 1) {
        if (count > 0) body(int64_t{0}, count);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static)
#endif
    for (int64_t part = 0; part < parts; ++part)
        body(count * part / parts, count * (part + 1) / parts);
}

}  // namespace cpgr
