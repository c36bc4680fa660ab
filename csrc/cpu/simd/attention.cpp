// Attention of one tile of queries, all keys, some heads. No template of the standard library may be used here (see
// csrc/box.h).
#include "attention.h"

#include "attention_tile.h"

namespace cpgr::CPGR_ISA {

template <class T>
int64_t attention_tile() {
    return 4 * Lanes<T>::count;
}

template <class T, class S>
int64_t attention_scratch(const AttentionInput<T, S>& in) {
    const int64_t whole = blocks<T>(in.keys) * kBlock, registers = attention_tile<T>();
    // Packed queries, output, weights, their sum over heads, masks; maxima and sight by block; a block of keys or values.
    return (in.width + in.value_width + 3 * whole + 2 * blocks<T>(in.keys) + 64) * registers +
           kBlock * (in.width + in.value_width);
}

namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417232;

// The softmax of one head's tile over its keys, kept up while blocks of keys come.
template <class T, int registers>
struct Softmax {
    static constexpr int lanes = Lanes<T>::count;
    V<T> most[registers], sum[registers];

    Softmax() {
        for (int r = 0; r < registers; ++r) most[r] = all(T(-__builtin_inf())), sum[r] = V<T>{};
    }

    // Scores [count][lane] (base 2) become weights relative to the new maximum; what was summed before counts
    // `rescale` times as much.
    void add(T* scores, int64_t count, const T* bias, V<T>* rescale) {
        constexpr int row = registers * lanes;
        for (int r = 0; r < registers; ++r) {
            V<T> high = most[r];
            for (int64_t s = 0; s < count; ++s) {
                T* place = scores + s * row + r * lanes;
                V<T> score = load(place);
                if (bias) store<T>(place, score = masked<T>(score, load(bias + s * row + r * lanes)));
                high = larger(high, score);
            }
            // Where nothing has been seen yet, subtract 0 and not -infinity.
            const V<T> from = high == all(T(-__builtin_inf())) ? V<T>{} : high;
            rescale[r] = power_of_two<T>(most[r] - from);
            V<T> added = V<T>{};
            for (int64_t s = 0; s < count; ++s) {
                T* place = scores + s * row + r * lanes;
                const V<T> weight = power_of_two<T>(load(place) - from);
                store<T>(place, weight);
                added += weight;
            }
            sum[r] = fma(sum[r], rescale[r], added);
            most[r] = high;
        }
    }
};

template <class T, int registers, class S>
void attend_tile(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int64_t b, int64_t first, int64_t count,
                 int64_t head, int64_t head_end, T* map, T* scratch) {
    constexpr int lanes = Lanes<T>::count, row = registers * lanes;
    const int64_t* rows = in.rows ? in.rows + b * in.row_count : nullptr;
    int64_t queries[row];
    for (int64_t lane = 0; lane < count; ++lane) queries[lane] = rows && !in.v ? rows[first + lane] : first + lane;
    bool mapped = !rows || !in.v;
    if (!mapped)
        for (int64_t i = 0; i < in.row_count; ++i) mapped |= rows[i] >= first && rows[i] < first + count;

    const int64_t parts = blocks<T>(in.keys), whole = parts * kBlock;
    T *packed = scratch, *sums = packed + in.width * row, *weights = sums + in.value_width * row;
    T *total = weights + whole * row, *bias = total + whole * row, *maxima = bias + whole * row;
    T* copied = maxima + parts * row;
    uint8_t* sight = reinterpret_cast<uint8_t*>(copied + kBlock * (in.width + in.value_width));
    const int64_t k_row = in.k_stride[2], v_row = in.v_stride[2];
    if (mapped)
        for (int64_t i = 0; i < in.keys * row; ++i) total[i] = T(0);

    for (int64_t h = head; h < head_end; ++h) {
        if (h == head || (in.mask_kind != Mask::none && in.mask_stride[1] != 0))
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t begin = part * kBlock, end = begin + kBlock < in.keys ? begin + kBlock : in.keys;
                sight[part] = pack_bias(in, b, h, queries, count, begin, end, bias + begin * row, row);
            }
        const int64_t group = h / (in.heads / in.groups);
        const S* k = in.k + b * in.k_stride[0] + group * in.k_stride[1];
        const S* v = in.v ? in.v + b * in.v_stride[0] + group * in.v_stride[1] : nullptr;
        pack<T, registers>(in.q + b * in.q_stride[0] + h * in.q_stride[1], in.q_stride[2], queries, count, in.width,
                           in.scale * T(kLog2E), packed);
        for (int64_t i = 0; i < in.value_width * row; ++i) sums[i] = T(0);

        Softmax<T, registers> softmax;
        for (int64_t part = 0; part < parts; ++part) {
            if (sight[part] == hidden) continue;
            const int64_t begin = part * kBlock, number = begin + kBlock < in.keys ? kBlock : in.keys - begin;
            T* block = weights + (mapped ? begin * row : 0);
            const S *keys = k + begin * k_row, *values = v ? v + begin * v_row : nullptr;
            const Rows<T> near_keys = readable<T>(keys, k_row, number, in.width, copied);
            const Ahead<S> ahead[2] = {{keys + (near_keys.at == copied ? number : kRows) * k_row, k_row}, {values, v_row}};
            scores_of<T, registers>(number, in.width, near_keys.at, near_keys.row, packed, block, ahead);
            V<T> rescale[registers];
            softmax.add(block, number, sight[part] == open ? nullptr : bias + begin * row, rescale);
            for (int r = 0; r < registers; ++r) store<T>(maxima + part * row + r * lanes, softmax.most[r]);
            if (!v) continue;
            for (int64_t e = 0; part && e < in.value_width; ++e)
                for (int r = 0; r < registers; ++r) {
                    T* place = sums + e * row + r * lanes;
                    store<T>(place, load(place) * rescale[r]);
                }
            const Rows<T> near_values = readable<T>(values, v_row, number, in.value_width, copied);
            product<T, registers>(in.value_width, number, near_values.at, 1, near_values.row, block, row, sums, row,
                                  true);
        }

        T most[row], sum[row], inverse[row];
        for (int r = 0; r < registers; ++r) {
            const V<T> none = V<T>{};
            store<T>(most + r * lanes, softmax.most[r]);
            store<T>(sum + r * lanes, softmax.sum[r]);
            store<T>(inverse + r * lanes, softmax.sum[r] == none ? none : all(T(1)) / softmax.sum[r]);
        }
        for (int64_t lane = 0; lane < count; ++lane)
            to.lse[(b * in.heads + h) * in.queries + queries[lane]] =
                sum[lane] == 0 ? T(__builtin_inf()) : T(most[lane] * kLn2 + __builtin_log(sum[lane]));
        if (v)
            transpose(sums, row, in.value_width, count,
                      to.out + b * to.out_stride[0] + h * to.out_stride[1] + first * to.out_stride[2],
                      to.out_stride[2], inverse);
        if (!mapped) continue;
        for (int64_t part = 0; part < parts; ++part) {
            if (sight[part] == hidden) continue;
            const int64_t begin = part * kBlock, end = begin + kBlock < in.keys ? begin + kBlock : in.keys;
            V<T> factor[registers];
            for (int r = 0; r < registers; ++r) {
                // Weights are relative to the maximum of their time.
                const V<T> then = load(maxima + part * row + r * lanes), unseen = all(T(-__builtin_inf()));
                const V<T> since = then == unseen ? V<T>{} : power_of_two<T>(then - softmax.most[r]);
                factor[r] = since * load(inverse + r * lanes) * all(T(1) / in.heads);
            }
            for (int64_t s = begin; s < end; ++s)
                for (int r = 0; r < registers; ++r) {
                    T* place = total + s * row + r * lanes;
                    store<T>(place, fma(load(weights + s * row + r * lanes), factor[r], load(place)));
                }
        }
    }

    if (!mapped) return;
    if (!rows || !in.v) {
        T* place = map + (b * in.row_count + first) * in.keys;
        transpose<T>(total, row, in.keys, count, place, in.keys, nullptr);
        return;
    }
    for (int64_t i = 0; i < in.row_count; ++i)
        if (rows[i] >= first && rows[i] < first + count)
            for (int64_t s = 0; s < in.keys; ++s)
                map[(b * in.row_count + i) * in.keys + s] = total[s * row + rows[i] - first];
}

}  // namespace

template <class T, class S>
void attend(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int64_t b, int64_t first, int64_t count,
            int64_t head, int64_t head_end, T* map, T* scratch) {
    constexpr int lanes = Lanes<T>::count;
    const auto run = count > 2 * lanes ? attend_tile<T, 4, S> : count > lanes ? attend_tile<T, 2, S> : attend_tile<T, 1, S>;
    run(in, to, b, first, count, head, head_end, map, scratch);
}

template <class T, class S>
void attend_few(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int64_t b, int64_t head, int64_t head_end,
                T* map, T* scratch) {
    constexpr int lanes = Lanes<T>::count;
    const int64_t parts = blocks<T>(in.keys), whole = parts * kBlock, full = in.width / lanes, rest = in.width % lanes;
    T *query = scratch, *scores = query + in.row_count * (in.width + lanes), *bias = scores + in.row_count * whole;
    map += b * in.row_count * in.keys;
    for (int64_t i = 0; i < in.row_count * in.keys; ++i) map[i] = T(0);

    for (int64_t h = head; h < head_end; ++h) {
        const S* q = in.q + b * in.q_stride[0] + h * in.q_stride[1];
        const S* k = in.k + b * in.k_stride[0] + h / (in.heads / in.groups) * in.k_stride[1];
        const int64_t padded = (full + (rest != 0)) * lanes;
        int64_t rows[kFewRows];
        for (int64_t i = 0; i < in.row_count; ++i) {
            rows[i] = in.rows ? in.rows[b * in.row_count + i] : i;
            for (int64_t d = 0; d < padded; ++d)
                query[i * padded + d] = d < in.width ? number(q[rows[i] * in.q_stride[2] + d]) * in.scale * T(kLog2E) : T(0);
        }
        // As many keys at a time as there are lanes: all rows read them while they are in the cache.
        for (int64_t s = 0; s < in.keys; s += lanes) {
            const int64_t number = in.keys - s < lanes ? in.keys - s : lanes;
            for (int64_t i = 0; i < in.row_count; ++i) {
                V<T> dots[lanes] = {};
                for (int64_t j = 0; j < number; ++j) {
                    const S* key = k + (s + j) * in.k_stride[2];
                    const T* own_query = query + i * padded;
                    for (int64_t d = 0; i == 0 && d < in.width; d += 64 / sizeof(S))
                        __builtin_prefetch(key + lanes * in.k_stride[2] + d);
                    V<T> sum = {};
                    for (int64_t c = 0; c < full; ++c) sum = fma(load(key + c * lanes), load(own_query + c * lanes), sum);
                    if (rest) sum = fma(load_first(key + full * lanes, rest), load(own_query + full * lanes), sum);
                    dots[j] = sum;
                }
                store<T>(scores + i * whole + s, sums_of_lanes<T>(dots));
            }
        }
        for (int64_t i = 0; i < in.row_count; ++i) {
            T* row = scores + i * whole;
            const T none = T(-__builtin_inf());
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t begin = part * kBlock, end = begin + kBlock < in.keys ? begin + kBlock : in.keys;
                const Sight sight = pack_bias(in, b, h, rows + i, 1, begin, end, bias, 1);
                if (sight == open) continue;
                for (int64_t s = begin; s < end; ++s)
                    row[s] = sight == hidden || bias[s - begin] == none ? none : row[s] + bias[s - begin];
            }
            const int64_t last = (in.keys + lanes - 1) / lanes * lanes;
            for (int64_t s = in.keys; s < last; ++s) row[s] = none;
            V<T> highest = all(none), sums = {};
            for (int64_t s = 0; s < last; s += lanes) highest = larger(highest, load(row + s));
            T most = none, sum = T(0), lane[lanes];
            store<T>(lane, highest);
            for (int j = 0; j < lanes; ++j) most = lane[j] > most ? lane[j] : most;
            const V<T> from = all(most == none ? T(0) : most);
            for (int64_t s = 0; s < last; s += lanes) {
                const V<T> weight = power_of_two<T>(load(row + s) - from);
                store<T>(row + s, weight);
                sums += weight;
            }
            store<T>(lane, sums);
            for (int j = 0; j < lanes; ++j) sum += lane[j];
            const T share = sum == 0 ? T(0) : T(1) / sum / in.heads;
            T* mean = map + i * in.keys;
            for (int64_t s = 0; s < in.keys; ++s) mean[s] += row[s] * share;
            to.lse[(b * in.heads + h) * in.queries + rows[i]] =
                sum == 0 ? T(__builtin_inf()) : T(most * kLn2 + __builtin_log(sum));
        }
    }
}

#define CPGR_INSTANTIATE(T, S)                                                                                        \
    template int64_t attention_scratch<T, S>(const AttentionInput<T, S>&);                                            \
    template void attend<T, S>(const AttentionInput<T, S>&, const AttentionOutput<T>&, int64_t, int64_t, int64_t,     \
                               int64_t, int64_t, T*, T*);                                                             \
    template void attend_few<T, S>(const AttentionInput<T, S>&, const AttentionOutput<T>&, int64_t, int64_t, int64_t, \
                                   T*, T*);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, Bfloat16)
CPGR_INSTANTIATE(double, double)
template int64_t attention_tile<float>();
template int64_t attention_tile<double>();

}  // namespace cpgr::CPGR_ISA
