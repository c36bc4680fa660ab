// Products of anchors with queries, the best of them, and the gradient's way back. Elements E are float, double or
// BF16; sums, scores and gradients are Compute<E>.
#pragma once

#include <cstdint>

#include "../bf16.h"
#include "../isa.h"

namespace cpgr {

// An integer as wide as T.
template <class T>
struct IndexOf;
template <>
struct IndexOf<float> {
    using type = int32_t;
};
template <>
struct IndexOf<double> {
    using type = int64_t;
};
template <class T>
using Index = typename IndexOf<T>::type;

CPGR_DECLARE_SIMD(
    // Queries are multiplied a panel at a time: four registers of them, transposed, so that a register holds the same
    // feature of as many queries and no sum ever crosses its lanes.
    template <class T>
    int64_t panel_queries();

    // Bytes of a packed panel of queries with `width` features.
    template <class E>
    int64_t panel_bytes(int64_t width);

    // Packs queries [count, width], count at most panel_queries, with zeros for what is missing.
    template <class E>
    void pack_panel(const E* queries, int64_t count, int64_t width, void* panel);

    // scores [rows, panel_queries]: anchors [rows, width] times the panel, of which `count` queries are wanted.
    template <class E>
    void score(const E* anchors, int64_t rows, int64_t width, const void* panel, int64_t count, Compute<E>* scores);

    // Empties the k best of a panel: best and where are [k, panel_queries], where is -1 for none.
    template <class T>
    void start_best(int64_t k, T* best, Index<T>* where);

    // Merges scores [rows, panel_queries] of the anchors first, first + 1, ... into the k best so far. Equal scores
    // keep the order of their anchors, NaN comes before all numbers. `counts` [rows] or null: rows that are 0 do not.
    template <class T>
    void merge_best(const T* scores, int64_t rows, int64_t first, int64_t count, const uint8_t* counts, int64_t k,
                    T* best, Index<T>* where);

    // The sum of exp(values[i] * scale - shift), i < count; with `out`, each of them times `weight` is written there.
    template <class T>
    T sum_exp(const T* values, int64_t count, T scale, T shift, T weight, T* out);

    // Columns of the gradient that are computed together.
    template <class T>
    int64_t gradient_columns();

    // Copies the first `count` of from, widened, and fills up to gradient_columns with zeros.
    template <class E>
    void take_columns(const E* from, int64_t count, Compute<E>* to);

    // Copies, or adds, the first `count` of from.
    template <class T>
    void put_columns(const T* from, int64_t count, bool add, T* to);

    // For every query q and entry e < entries, with s = slots[q * entries + e] and w = shares[q * entries + e]:
    // grad_queries[q] += w anchors[s] and grad_anchors[s] += w queries[q]. Rows have gradient_columns columns.
    // Meanwhile the rows at `ahead` are fetched into the second-level cache.
    template <class T>
    void scatter_gradients(const T* shares, const int32_t* slots, int64_t count, int64_t entries,
                           const T* anchors, const T* queries, T* grad_anchors, T* grad_queries, const void* const* ahead,
                           int64_t aheads);)

}  // namespace cpgr
