#include "attention.h"
#include "parallel.h"
#include "scratch.h"
#include "simd/attention_backward.h"

namespace cpgr {

template <class T, class S>
void attention_backward(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int threads) {
    const auto backward = CPGR_SIMD(attend_backward<T, S>);
    const int64_t scratch = CPGR_SIMD(attention_backward_scratch<T, S>)(in);
    // A thread has all query heads of a key head, so that it alone adds to that head's gradients.
    parallel_for(in.batch * in.groups, 1, threads, [&](int64_t begin, int64_t end) {
        const Scratch<T> mine(scratch);
        for (int64_t i = begin; i < end; ++i) backward(in, to, i / in.groups, i % in.groups, mine.get());
    });
}

#define CPGR_INSTANTIATE(T, S) \
    template void attention_backward<T, S>(const AttentionInput<T, S>&, const AttentionGradients<T, S>&, int);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, Bfloat16)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
