#include "attention.h"
#include "parallel.h"
#include "scratch.h"
#include "simd/attention_backward.h"

namespace cpgr {

template <class T>
void attention_backward(const AttentionInput<T>& in, const AttentionGradients<T>& to, int threads) {
    const auto backward = CPGR_SIMD(attend_backward<T>);
    const int64_t scratch = CPGR_SIMD(attention_backward_scratch<T>)(in);
    // A thread has all query heads of a key head, so that it alone adds to that head's gradients.
    parallel_for(in.batch * in.groups, 1, threads, [&](int64_t begin, int64_t end) {
        const Scratch<T> mine(scratch);
        for (int64_t i = begin; i < end; ++i) backward(in, to, i / in.groups, i % in.groups, mine.get());
    });
}

template void attention_backward<float>(const AttentionInput<float>&, const AttentionGradients<float>&, int);
template void attention_backward<double>(const AttentionInput<double>&, const AttentionGradients<double>&, int);

}  // namespace cpgr
