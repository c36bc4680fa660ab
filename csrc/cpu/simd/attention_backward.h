#pragma once

#include <cstdint>

#include "../attention.h"
#include "../isa.h"

namespace cpgr {

CPGR_DECLARE_SIMD(
    // Numbers of scratch that `attend_backward` needs.
    template <class T, class S>
    int64_t attention_backward_scratch(const AttentionInput<T, S>& in);

    // All gradients of key head `group` of batch b and of the query heads that read it.
    template <class T, class S>
    void attend_backward(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int64_t b, int64_t group,
                         T* scratch);)

}  // namespace cpgr
