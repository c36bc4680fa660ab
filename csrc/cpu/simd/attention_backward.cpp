// The gradients of attention, its weights made again. No template of the standard library may be used here (see
// csrc/box.h).
#include "attention_backward.h"

#include "attention_tile.h"

namespace cpgr::CPGR_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736;

template <class T>
int64_t padded(int64_t width) {
    return (width + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count;
}

// to[line][0..width) = from[queries[line]][0..width), padded with 0 to whole registers.
template <class T, class S>
void gather(const S* from, int64_t from_row, const int64_t* queries, int64_t count, int64_t width, T* to) {
    for (int64_t line = 0; line < count; ++line) {
        T* row = to + line * padded<T>(width);
        for (int64_t i = 0; i < width; ++i) row[i] = number(from[queries[line] * from_row + i]);
        for (int64_t i = width; i < padded<T>(width); ++i) row[i] = T(0);
    }
}

// sums[key][0..width) += sum over the tile's queries of tile[key][query] * lines[query][0..width).
template <class T>
void add_outer(int64_t keys, int64_t queries, const T* tile, int64_t tile_row, const T* lines, int64_t width, T* sums) {
    constexpr int lanes = Lanes<T>::count;
    const int64_t row = padded<T>(width);
    int64_t i = 0;
    for (; i + 2 * lanes <= row; i += 2 * lanes)
        product<T, 2>(keys, queries, tile, tile_row, 1, lines + i, row, sums + i, row, true);
    if (i < row) product<T, 1>(keys, queries, tile, tile_row, 1, lines + i, row, sums + i, row, true);
}

// A key head: its keys and values side by side, and the sums of their gradients, [S, padded D] and [S, padded E].
template <class T>
struct Head {
    T *k, *v, *grad_k, *grad_v;
};

// The gradient of the map at a tile, a head's share, [key][lane]; false if there is none and nothing was written.
template <class T, int registers, class S>
bool map_gradient(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int64_t b, int64_t first, int64_t count,
                  T* grads) {
    if (!to.grad_map) return false;
    constexpr int row = registers * Lanes<T>::count;
    const T* from = to.grad_map + b * in.row_count * in.keys;
    const T share = T(1) / in.heads;
    if (!in.rows || !to.grad_out) {  // the tile's lanes are the map's rows
        int64_t lines[row];
        for (int64_t lane = 0; lane < count; ++lane) lines[lane] = first + lane;
        pack<T, registers>(from, in.keys, lines, count, in.keys, share, grads);
        return true;
    }
    bool any = false;
    for (int64_t i = 0; i < in.row_count; ++i) {
        const int64_t lane = in.rows[b * in.row_count + i] - first;
        if (lane < 0 || lane >= count) continue;
        for (int64_t j = 0; !any && j < in.keys * row; ++j) grads[j] = T(0);
        any = true;
        for (int64_t s = 0; s < in.keys; ++s) grads[s * row + lane] += from[i * in.keys + s] * share;
    }
    return any;
}

// One tile of queries of head h: adds to the sums of its key head, writes its queries' gradient.
template <class T, int registers, class S>
void tile_backward(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int64_t b, int64_t h, int64_t first,
                   int64_t count, const Head<T>& own, T* scratch) {
    constexpr int lanes = Lanes<T>::count, row = registers * lanes;
    // Where the map alone has a gradient, the tile is of chosen rows.
    const bool through_output = in.v && to.grad_out;
    const int64_t* rows = in.rows ? in.rows + b * in.row_count : nullptr;
    int64_t queries[row];
    for (int64_t lane = 0; lane < count; ++lane)
        queries[lane] = rows && !through_output ? rows[first + lane] : first + lane;

    const int64_t parts = blocks<T>(in.keys), whole = parts * kBlock;
    T *packed = scratch, *packed_grad = packed + in.width * row, *lines = packed_grad + in.value_width * row;
    T *grad_lines = lines + row * padded<T>(in.width), *grad_query = grad_lines + row * padded<T>(in.value_width);
    T *weights = grad_query + in.width * row, *grads = weights + whole * row, *bias = grads + whole * row;
    uint8_t* sight = reinterpret_cast<uint8_t*>(bias + kBlock * row);

    const int64_t k_row = padded<T>(in.width), v_row = padded<T>(in.value_width);
    const S* q = in.q + b * in.q_stride[0] + h * in.q_stride[1];
    pack<T, registers>(q, in.q_stride[2], queries, count, in.width, in.scale * T(kLog2E), packed);
    gather(q, in.q_stride[2], queries, count, in.width, lines);
    if (through_output) {
        const S* grad = to.grad_out + b * to.grad_out_stride[0] + h * to.grad_out_stride[1];
        pack<T, registers>(grad, to.grad_out_stride[2], queries, count, in.value_width, T(1), packed_grad);
        gather(grad, to.grad_out_stride[2], queries, count, in.value_width, grad_lines);
    }
    // Scores and their maxima. The forward pass's lse would save this pass over the scores, but not exactly: of a row
    // with large scores, or one masked by the type's least number, it keeps few digits of the sum.
    V<T> most[registers], sum[registers] = {}, dots[registers] = {};
    for (auto& each : most) each = all(T(-__builtin_inf()));
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * kBlock, end = begin + kBlock < in.keys ? begin + kBlock : in.keys;
        sight[part] = pack_bias(in, b, h, queries, count, begin, end, bias, row);
        if (sight[part] == hidden) continue;
        T* block = weights + begin * row;
        product<T, registers>(end - begin, in.width, own.k + begin * k_row, k_row, 1, packed, row, block, row, false);
        for (int r = 0; r < registers; ++r)
            for (int64_t place = r * lanes; place < (end - begin) * row; place += row) {
                if (sight[part] == mixed) store<T>(block + place, masked<T>(load(block + place), load(bias + place)));
                most[r] = larger(most[r], load(block + place));
            }
    }
    // Weights, as yet without their sum's division, and their gradients.
    const bool shaped = map_gradient<T, registers>(in, to, b, first, count, grads);
    for (auto& each : most) each = each == all(T(-__builtin_inf())) ? V<T>{} : each;
    for (int64_t part = 0; part < parts; ++part) {
        if (sight[part] == hidden) continue;
        const int64_t begin = part * kBlock, number = begin + kBlock < in.keys ? kBlock : in.keys - begin;
        T *block = weights + begin * row, *grad_block = grads + begin * row;
        if (through_output)
            product<T, registers>(number, in.value_width, own.v + begin * v_row, v_row, 1, packed_grad, row, grad_block,
                                  row, shaped);
        for (int r = 0; r < registers; ++r)
            for (int64_t place = r * lanes; place < number * row; place += row) {
                const V<T> weight = power_of_two<T>(load(block + place) - most[r]);
                store<T>(block + place, weight);
                sum[r] += weight;
                dots[r] = fma(weight, load(grad_block + place), dots[r]);
            }
    }
    V<T> inverse[registers];
    for (int r = 0; r < registers; ++r) {
        inverse[r] = sum[r] == V<T>{} ? V<T>{} : all(T(1)) / sum[r];
        dots[r] *= inverse[r];
    }
    // The gradients of values, then of scores, then of queries and keys.
    for (int64_t i = 0; i < in.width * row; ++i) grad_query[i] = T(0);
    for (int64_t part = 0; part < parts; ++part) {
        if (sight[part] == hidden) continue;
        const int64_t begin = part * kBlock, number = begin + kBlock < in.keys ? kBlock : in.keys - begin;
        T *block = weights + begin * row, *grad_block = grads + begin * row;
        for (int r = 0; r < registers; ++r)
            for (int64_t place = r * lanes; place < number * row; place += row) {
                const V<T> weight = load(block + place) * inverse[r];
                store<T>(block + place, weight);
                store<T>(grad_block + place, weight * (load(grad_block + place) - dots[r]));
            }
        if (through_output)
            add_outer(number, count, block, row, grad_lines, in.value_width, own.grad_v + begin * v_row);
        product<T, registers>(in.width, number, own.k + begin * k_row, 1, k_row, grad_block, row, grad_query, row,
                              true);
        add_outer(number, count, grad_block, row, lines, in.width, own.grad_k + begin * k_row);
    }
    // A row that was chosen twice adds twice, to zeros that the caller has written.
    const bool add = rows && !through_output;
    T* grad_q = to.grad_q + b * to.grad_q_stride[0] + h * to.grad_q_stride[1];
    T* turned = lines;
    const V<T> scale[2] = {all(in.scale), all(in.scale)};
    transpose<T>(grad_query, row, in.width, count, turned, k_row, reinterpret_cast<const T*>(scale));
    for (int64_t lane = 0; lane < count; ++lane) {
        T* to_row = grad_q + queries[lane] * to.grad_q_stride[2];
        for (int64_t d = 0; d < in.width; ++d) to_row[d] = (add ? to_row[d] : T(0)) + turned[lane * k_row + d];
    }
}

}  // namespace

template <class T, class S>
int64_t attention_backward_scratch(const AttentionInput<T, S>& in) {
    const int64_t whole = blocks<T>(in.keys) * kBlock, row = 2 * Lanes<T>::count;
    const int64_t widths = 2 * padded<T>(in.width) + 2 * padded<T>(in.value_width) + in.width;
    return (widths + 2 * whole + kBlock + blocks<T>(in.keys)) * row +
           2 * in.keys * (padded<T>(in.width) + padded<T>(in.value_width));
}

template <class T, class S>
void attend_backward(const AttentionInput<T, S>& in, const AttentionGradients<T, S>& to, int64_t b, int64_t group,
                     T* scratch) {
    constexpr int lanes = Lanes<T>::count;
    const int64_t k_row = padded<T>(in.width), v_row = padded<T>(in.value_width);
    T *k = scratch, *v = k + in.keys * k_row, *grad_k = v + in.keys * v_row, *grad_v = grad_k + in.keys * k_row;
    T* rest = grad_v + in.keys * v_row;
    for (T* place = grad_k; place < rest; ++place) *place = T(0);
    copy_rows(in.k + b * in.k_stride[0] + group * in.k_stride[1], in.k_stride[2], in.keys, in.width, k, k_row);
    if (in.v)
        copy_rows(in.v + b * in.v_stride[0] + group * in.v_stride[1], in.v_stride[2], in.keys, in.value_width, v, v_row);

    const int64_t shared = in.heads / in.groups, lines = in.v && to.grad_out ? in.queries : in.row_count;
    for (int64_t h = group * shared; h < (group + 1) * shared; ++h)
        for (int64_t first = 0; first < lines; first += 2 * lanes) {
            const int64_t count = lines - first < 2 * lanes ? lines - first : 2 * lanes;
            const auto run = count > lanes ? tile_backward<T, 2, S> : tile_backward<T, 1, S>;
            run(in, to, b, h, first, count, {k, v, grad_k, grad_v}, rest);
        }
    for (int64_t i = 0; i < in.keys * k_row; ++i) grad_k[i] *= in.scale;
    copy_rows(grad_k, k_row, in.keys, in.width, to.grad_k + b * to.grad_k_stride[0] + group * to.grad_k_stride[1],
              to.grad_k_stride[2]);
    if (to.grad_v)
        copy_rows(grad_v, v_row, in.keys, in.value_width,
                  to.grad_v + b * to.grad_v_stride[0] + group * to.grad_v_stride[1], to.grad_v_stride[2]);
}

#define CPGR_INSTANTIATE(T, S)                                                                                     \
    template int64_t attention_backward_scratch<T, S>(const AttentionInput<T, S>&);                                \
    template void attend_backward<T, S>(const AttentionInput<T, S>&, const AttentionGradients<T, S>&, int64_t, int64_t, \
                                        T*);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, Bfloat16)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr::CPGR_ISA
