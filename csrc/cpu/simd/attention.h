#pragma once

#include <cstdint>

#include "../attention.h"
#include "../isa.h"

namespace cpgr {

CPGR_DECLARE_SIMD(
    // Queries of a tile.
    template <class T>
    int64_t attention_tile();

    // Numbers of scratch that `attend` needs.
    template <class T, class S>
    int64_t attention_scratch(const AttentionInput<T, S>& in);

    // Heads head..head_end of a tile of `count` queries of batch b, from the first-th on (of the chosen rows, where there
    // is no v). The heads' share of the map's mean is written to `map`, [B, row_count, S].
    template <class T, class S>
    void attend(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int64_t b, int64_t first, int64_t count,
                int64_t head, int64_t head_end, T* map, T* scratch);

    // The same without v for all the chosen rows of a batch, if these are few (kFewRows): a register then holds features
    // of one key, and each key is read once.
    template <class T, class S>
    void attend_few(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int64_t b, int64_t head,
                    int64_t head_end, T* map, T* scratch);)

constexpr int64_t kFewRows = 4;

}  // namespace cpgr
