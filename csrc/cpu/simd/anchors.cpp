#include "anchors.h"

#include "exp.h"
#include "lanes.h"

namespace cpgr::CPGR_ISA {

// ---- Products ------------------------------------------------------------------------------------------------------

// A micro-kernel keeps kRows anchors times a panel in registers: with the panel's registers and a repeated anchor's
// they must fit into the 32 (AVX-512) or 16 that there are.
#if defined(__AVX512F__)
static constexpr int kRegisters = 4, kRows = 6;
#elif defined(__AVX2__)
static constexpr int kRegisters = 3, kRows = 4;
#else
static constexpr int kRegisters = 2, kRows = 4;
#endif

// Features that are summed in a row. Sums of such sums round less, and fewer near ties come out the wrong way round.
static constexpr int64_t kSummed = 128;

template <class T>
static constexpr int kPanel = kRegisters * Lanes<T>::count;

// How an element type is multiplied: the panel holds Packed numbers, each step takes `depth` features.
template <class E>
struct Product {
    using T = Compute<E>;
    using Packed = T;
    static constexpr int depth = 1;
    static inline typename Lanes<T>::Reg load(const Packed* p) { return Lanes<T>::load(p); }
    static inline typename Lanes<T>::Reg repeat(const E* p) { return Lanes<T>::all(widen(*p)); }
    static inline typename Lanes<T>::Reg add(typename Lanes<T>::Reg a, typename Lanes<T>::Reg b,
                                             typename Lanes<T>::Reg sum) {
        return fma(a, b, sum);
    }
    static inline void pack(const E* features, int64_t, Packed* to) { *to = widen(*features); }
};

#if defined(__AVX512BF16__)
// Two features at a time: a lane holds a pair, and the instruction adds both products to the lane's float.
template <>
struct Product<BF16> {
    using T = float;
    using Packed = uint32_t;
    static constexpr int depth = 2;
    static inline FloatReg load(const Packed* p) { return (FloatReg)_mm512_loadu_ps(p); }
    static inline FloatReg repeat(const BF16* p) {
        int32_t pair;
        __builtin_memcpy(&pair, p, sizeof(pair));
        return (FloatReg)_mm512_set1_epi32(pair);
    }
    static inline FloatReg add(FloatReg a, FloatReg b, FloatReg sum) {
        return (FloatReg)_mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    // The partner of the last of an odd number of features is 0.
    static inline void pack(const BF16* features, int64_t left, Packed* to) {
        *to = features[0].bits | static_cast<uint32_t>(left > 1 ? features[1].bits : 0) << 16;
    }
};
#endif

template <class T>
int64_t panel_queries() {
    return kPanel<T>;
}

template <class E>
int64_t panel_bytes(int64_t width) {
    using P = Product<E>;
    return (width + P::depth - 1) / P::depth * kPanel<typename P::T> * sizeof(typename P::Packed);
}

template <class E>
void pack_panel(const E* queries, int64_t count, int64_t width, void* panel) {
    using P = Product<E>;
    constexpr int64_t lanes = kPanel<typename P::T>;
    auto* const packed = static_cast<typename P::Packed*>(panel);
    // A cache line of every query at a time: both sides then stay in the first-level cache.
    constexpr int64_t line = 64 / sizeof(E);
    for (int64_t d0 = 0; d0 < width; d0 += line) {
        const int64_t filled = width - d0 < line ? width - d0 : line, steps = (filled + P::depth - 1) / P::depth;
        auto* const to = packed + d0 / P::depth * lanes;
        for (int64_t q = 0; q < count; ++q) {
            const E* const from = queries + q * width + d0;
            for (int64_t i = 0; i < steps; ++i) P::pack(from + i * P::depth, filled - i * P::depth, to + i * lanes + q);
        }
        for (int64_t i = 0; i < steps && count < lanes; ++i)
            for (int64_t q = count; q < lanes; ++q) to[i * lanes + q] = 0;
    }
}

template <class E, int ROWS, int REGISTERS>
static void multiply(const E* __restrict__ anchors, int64_t width, const typename Product<E>::Packed* __restrict__ panel,
                     Compute<E>* __restrict__ scores) {
    using P = Product<E>;
    using T = Compute<E>;
    using L = Lanes<T>;
    constexpr int64_t lanes = kPanel<T>;
    const int64_t paired = width / P::depth * P::depth;
    for (int64_t d0 = 0; d0 == 0 || d0 < width; d0 += kSummed) {
        typename L::Reg sum[ROWS][REGISTERS] = {};
        const auto step = [&](const auto& anchor) {
            typename L::Reg query[REGISTERS];
#pragma GCC unroll 8
            for (int v = 0; v < REGISTERS; ++v) query[v] = P::load(panel + v * L::count);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const typename L::Reg repeated = anchor(r);
#pragma GCC unroll 8
                for (int v = 0; v < REGISTERS; ++v) sum[r][v] = P::add(repeated, query[v], sum[r][v]);
            }
            panel += lanes;
        };
        const int64_t end = d0 + kSummed < paired ? d0 + kSummed : paired;
        for (int64_t d = d0; d < end; d += P::depth) step([&](int r) { return P::repeat(anchors + r * width + d); });
        if (paired < width && width <= d0 + kSummed) {
            step([&](int r) {
                const E last[2] = {anchors[r * width + paired], E{}};
                return P::repeat(last);
            });
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < REGISTERS; ++v) {
                T* const score = scores + r * lanes + v * L::count;
                L::store(score, d0 ? L::load(score) + sum[r][v] : sum[r][v]);
            }
    }
}

template <class E, int ROWS>
static void multiply_rows(const E* anchors, int64_t width, const typename Product<E>::Packed* panel, int registers,
                          Compute<E>* scores) {
    if (registers == 1) return multiply<E, ROWS, 1>(anchors, width, panel, scores);
    if (registers == 2) return multiply<E, ROWS, 2>(anchors, width, panel, scores);
#if defined(__AVX512F__)
    if (registers == 3) return multiply<E, ROWS, 3>(anchors, width, panel, scores);
#endif
    multiply<E, ROWS, kRegisters>(anchors, width, panel, scores);
}

template <class E>
void score(const E* anchors, int64_t rows, int64_t width, const void* panel, int64_t count, Compute<E>* scores) {
    using T = Compute<E>;
    const auto* const packed = static_cast<const typename Product<E>::Packed*>(panel);
    const int registers = static_cast<int>((count + Lanes<T>::count - 1) / Lanes<T>::count);
    for (int64_t r = 0; r < rows; r += kRows, anchors += kRows * width, scores += kRows * kPanel<T>) {
        switch (rows - r) {
            case 1: multiply_rows<E, 1>(anchors, width, packed, registers, scores); break;
            case 2: multiply_rows<E, 2>(anchors, width, packed, registers, scores); break;
            case 3: multiply_rows<E, 3>(anchors, width, packed, registers, scores); break;
#if defined(__AVX512F__)
            case 4: multiply_rows<E, 4>(anchors, width, packed, registers, scores); break;
            case 5: multiply_rows<E, 5>(anchors, width, packed, registers, scores); break;
#endif
            default: multiply_rows<E, kRows>(anchors, width, packed, registers, scores);
        }
    }
}

// ---- The best ------------------------------------------------------------------------------------------------------

template <class T>
void start_best(int64_t k, T* best, Index<T>* where) {
    for (int64_t i = 0; i < k * kPanel<T>; ++i) {
        best[i] = -static_cast<T>(__builtin_inf());
        where[i] = -1;
    }
}

// One register of queries, any k, any scores.
template <class T>
static void merge_carefully(const T* scores, int64_t rows, int64_t first, const uint8_t* counts, int64_t k, T* best,
                            Index<T>* where) {
    using L = Lanes<T>;
    constexpr int64_t lanes = kPanel<T>;
    const auto beats = [](typename L::Reg a, typename L::Reg b, typename L::IndexReg of_b) {
        return (typename L::IndexReg)(a > b) | ((typename L::IndexReg)(a != a) & (typename L::IndexReg)(b == b)) |
               (of_b < L::all_index(0));
    };
    for (int64_t r = 0; r < rows; ++r) {
        if (counts && !counts[r]) continue;
        typename L::Reg score = L::load(scores + r * lanes);
        typename L::IndexReg index = L::all_index(static_cast<Index<T>>(first + r));
        const int64_t last = (k - 1) * lanes;
        if (!any(beats(score, L::load(best + last), L::load(where + last)))) continue;
        typename L::IndexReg moved = L::all_index(0);
        for (int64_t j = 0; j < k; ++j) {
            const typename L::Reg other = L::load(best + j * lanes);
            const typename L::IndexReg of_other = L::load(where + j * lanes);
            moved |= beats(score, other, of_other);  // what has been pushed down pushes all below it
            L::store(best + j * lanes, moved ? score : other);
            L::store(where + j * lanes, moved ? index : of_other);
            score = moved ? other : score;
            index = moved ? of_other : index;
        }
    }
}

// One register of queries, k of 1 or 2 in registers. False, and nothing done, if a score is infinite or NaN.
template <class T, int K>
static bool merge_finite(const T* scores, int64_t rows, int64_t first, const uint8_t* counts, T* best,
                         Index<T>* where) {
    using L = Lanes<T>;
    constexpr int64_t lanes = kPanel<T>;
    typename L::Reg top = L::load(best), second = L::load(best + (K - 1) * lanes), odd = L::all(0);
    typename L::IndexReg at_top = L::load(where), at_second = L::load(where + (K - 1) * lanes);
    for (int64_t r = 0; r < rows; ++r) {
        if (counts && !counts[r]) continue;
        const typename L::Reg score = L::load(scores + r * lanes);
        const typename L::IndexReg index = L::all_index(static_cast<Index<T>>(first + r));
        const typename L::IndexReg wins = score > top;
        odd = fma(score, L::all(0), odd);
        if (K == 2) {
            const typename L::IndexReg places = score > second;
            second = wins ? top : places ? score : second;
            at_second = wins ? at_top : places ? index : at_second;
        }
        top = wins ? score : top;
        at_top = wins ? index : at_top;
    }
    if (any((typename L::IndexReg)(odd != odd))) return false;
    L::store(best, top);
    L::store(where, at_top);
    if (K == 2) {
        L::store(best + lanes, second);
        L::store(where + lanes, at_second);
    }
    return true;
}

template <class T>
void merge_best(const T* scores, int64_t rows, int64_t first, int64_t count, const uint8_t* counts, int64_t k, T* best,
                Index<T>* where) {
    for (int64_t lane = 0; lane < count; lane += Lanes<T>::count) {
        const T* s = scores + lane;
        if (k == 1 && merge_finite<T, 1>(s, rows, first, counts, best + lane, where + lane)) continue;
        if (k == 2 && merge_finite<T, 2>(s, rows, first, counts, best + lane, where + lane)) continue;
        merge_carefully<T>(s, rows, first, counts, k, best + lane, where + lane);
    }
}

template <class T>
T sum_exp(const T* values, int64_t count, T scale, T shift, T weight, T* out) {
    using L = Lanes<T>;
    typename L::Reg sum = L::all(0);
    for (int64_t i = 0; i < count; i += L::count) {
        const int64_t filled = count - i < L::count ? count - i : L::count;
        typename L::Reg value;
        if (filled == L::count) {
            value = L::load(values + i) * L::all(scale) - L::all(shift);
        } else {
            // Through memory: setting lanes one by one takes longer than all the rest.
            T last[L::count];
            for (T& each : last) each = -static_cast<T>(__builtin_inf());
            for (int64_t lane = 0; lane < filled; ++lane) last[lane] = values[i + lane] * scale - shift;
            value = L::load(last);
        }
        const typename L::Reg power = exp(value);
        sum += power;
        if (!out) continue;
        const typename L::Reg share = power * L::all(weight);
        if (filled == L::count)
            L::store(out + i, share);
        else
            __builtin_memcpy(out + i, &share, static_cast<std::size_t>(filled) * sizeof(T));
    }
    T total = 0;
    for (int lane = 0; lane < L::count; ++lane) total += sum[lane];
    return total;
}

// ---- The gradient --------------------------------------------------------------------------------------------------

static constexpr int kColumns = 4;  // registers

template <class T>
int64_t gradient_columns() {
    return kColumns * Lanes<T>::count;
}

template <class T>
static inline typename Lanes<T>::Reg load_wide(const T* from) {
    return Lanes<T>::load(from);
}

static inline FloatReg load_wide(const BF16* from) {
    typedef uint16_t Half __attribute__((vector_size(kRegisterBytes / 2)));
    Half half;
    __builtin_memcpy(&half, from, sizeof(half));
    return (FloatReg)(__builtin_convertvector(half, Lanes<float>::IndexReg) << 16);
}

template <class E>
void take_columns(const E* from, int64_t count, Compute<E>* to) {
    using L = Lanes<Compute<E>>;
    constexpr int64_t columns = kColumns * L::count;
    if (count == columns) {
#pragma GCC unroll 8
        for (int64_t d = 0; d < columns; d += L::count) L::store(to + d, load_wide(from + d));
        return;
    }
    for (int64_t d = 0; d < count; ++d) to[d] = widen(from[d]);
    for (int64_t d = count; d < columns; ++d) to[d] = 0;
}

template <class T>
void put_columns(const T* from, int64_t count, bool add, T* to) {
    using L = Lanes<T>;
    constexpr int64_t columns = kColumns * L::count;
    if (add) {
        for (int64_t d = 0; d < count; ++d) to[d] += from[d];
    } else if (count == columns) {
#pragma GCC unroll 8
        for (int64_t d = 0; d < columns; d += L::count) L::store(to + d, L::load(from + d));
    } else {
        for (int64_t d = 0; d < count; ++d) to[d] = from[d];
    }
}

template <class T>
void scatter_gradients(const T* shares, const int32_t* slots, int64_t count, int64_t entries,
                       const T* __restrict__ anchors, const T* __restrict__ queries, T* __restrict__ grad_anchors,
                       T* __restrict__ grad_queries, const void* const* ahead, int64_t aheads) {
    using L = Lanes<T>;
    constexpr int64_t columns = kColumns * L::count;
    const int64_t aheads_each = (aheads + count - 1) / count;
    for (int64_t q = 0; q < count; ++q, queries += columns, grad_queries += columns) {
        for (int64_t i = 0; i < aheads_each && aheads > 0; ++i) {
            const char* const row = static_cast<const char*>(ahead[--aheads]);
            for (int64_t byte = 0; byte < columns * static_cast<int64_t>(sizeof(T)); byte += 64)
                __builtin_prefetch(row + byte, 0, 2);
        }
        typename L::Reg query[kColumns], sum[kColumns];
#pragma GCC unroll 8
        for (int v = 0; v < kColumns; ++v) {
            query[v] = L::load(queries + v * L::count);
            sum[v] = L::load(grad_queries + v * L::count);
        }
        for (int64_t e = 0; e < entries; ++e) {
            const typename L::Reg share = L::all(shares[q * entries + e]);
            const T* const anchor = anchors + slots[q * entries + e] * columns;
            T* const grad_anchor = grad_anchors + slots[q * entries + e] * columns;
#pragma GCC unroll 8
            for (int v = 0; v < kColumns; ++v) {
                sum[v] = fma(share, L::load(anchor + v * L::count), sum[v]);
                L::store(grad_anchor + v * L::count,
                         fma(share, query[v], L::load(grad_anchor + v * L::count)));
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < kColumns; ++v) L::store(grad_queries + v * L::count, sum[v]);
    }
}

#define CPGR_INSTANTIATE_ELEMENT(E)                                             \
    template int64_t panel_bytes<E>(int64_t);                                   \
    template void pack_panel<E>(const E*, int64_t, int64_t, void*);             \
    template void score<E>(const E*, int64_t, int64_t, const void*, int64_t, Compute<E>*); \
    template void take_columns<E>(const E*, int64_t, Compute<E>*);
CPGR_INSTANTIATE_ELEMENT(float)
CPGR_INSTANTIATE_ELEMENT(double)
CPGR_INSTANTIATE_ELEMENT(BF16)

#define CPGR_INSTANTIATE(T)                                                                                         \
    template int64_t panel_queries<T>();                                                                            \
    template int64_t gradient_columns<T>();                                                                         \
    template void start_best<T>(int64_t, T*, Index<T>*);                                                            \
    template void merge_best<T>(const T*, int64_t, int64_t, int64_t, const uint8_t*, int64_t, T*, Index<T>*);       \
    template T sum_exp<T>(const T*, int64_t, T, T, T, T*);                                                          \
    template void put_columns<T>(const T*, int64_t, bool, T*);                                                      \
    template void scatter_gradients<T>(const T*, const int32_t*, int64_t, int64_t, const T*, const T*, T*, T*, \
                                       const void* const*, int64_t);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::CPGR_ISA
