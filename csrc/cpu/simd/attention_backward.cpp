// The gradients of attention, its weights made again from lse. No template of the standard library may be used here (see
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
template <class T>
void gather(const T* from, int64_t from_row, const int64_t* queries, int64_t count, int64_t width, T* to) {
    for (int64_t line = 0; line < count; ++line) {
        T* row = to + line * padded<T>(width);
        for (int64_t i = 0; i < width; ++i) row[i] = from[queries[line] * from_row + i];
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

template <class T>
struct Sums {
    T *k, *v;  // [S, padded D] and [S, padded E]
};

// One tile of queries of head h: adds to the sums of its key head, writes its queries' gradient.
template <class T, int registers>
void tile_backward(const AttentionInput<T>& in, const AttentionGradients<T>& to, int64_t b, int64_t h, int64_t first,
                   int64_t count, const Sums<T>& sums, T* scratch) {
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

    const int64_t group = h / (in.heads / in.groups);
    const T* q = in.q + b * in.q_stride[0] + h * in.q_stride[1];
    const T* k = in.k + b * in.k_stride[0] + group * in.k_stride[1];
    const T* v = in.v ? in.v + b * in.v_stride[0] + group * in.v_stride[1] : nullptr;
    pack(q, in.q_stride[2], queries, count, in.width, in.scale * T(kLog2E), packed, row);
    gather(q, in.q_stride[2], queries, count, in.width, lines);
    if (through_output) {
        const T* grad = to.grad_out + b * to.grad_out_stride[0] + h * to.grad_out_stride[1];
        pack(grad, to.grad_out_stride[2], queries, count, in.value_width, T(1), packed_grad, row);
        gather(grad, to.grad_out_stride[2], queries, count, in.value_width, grad_lines);
    }
    T lse[row];
    for (int64_t lane = 0; lane < row; ++lane)
        lse[lane] = lane < count ? to.lse[(b * in.heads + h) * in.queries + queries[lane]] * T(kLog2E)
                                 : T(__builtin_inf());

    for (int64_t i = 0; !through_output && i < in.keys * row; ++i) grads[i] = T(0);
    V<T> dots[registers] = {};
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * kBlock, end = begin + kBlock < in.keys ? begin + kBlock : in.keys;
        const int64_t number = end - begin;
        sight[part] = pack_bias(in, b, h, queries, count, begin, end, bias, row);
        if (sight[part] == hidden) continue;
        T *block = weights + begin * row, *grad_block = grads + begin * row;
        product<T, registers>(number, in.width, k + begin * in.k_stride[2], in.k_stride[2], 1, packed, row, block, row,
                              false);
        if (through_output)
            product<T, registers>(number, in.value_width, v + begin * in.v_stride[2], in.v_stride[2], 1, packed_grad,
                                  row, grad_block, row, false);
        if (to.grad_map) {
            const T* grad = to.grad_map + b * in.row_count * in.keys;
            for (int64_t i = 0; i < in.row_count; ++i) {
                const int64_t lane = rows && through_output ? rows[i] - first : i - first;
                if (lane < 0 || lane >= count) continue;
                for (int64_t s = begin; s < end; ++s)
                    grads[s * row + lane] += grad[i * in.keys + s] * (T(1) / in.heads);
            }
        }
        for (int r = 0; r < registers; ++r) {
            const V<T> total = load(lse + r * lanes);
            for (int64_t s = 0; s < number; ++s) {
                const int64_t place = s * row + r * lanes;
                V<T> score = load(block + place);
                if (sight[part] == mixed) score = masked<T>(score, load(bias + place));
                const V<T> weight = power_of_two<T>(score - total);
                store<T>(block + place, weight);
                dots[r] = fma(weight, load(grad_block + place), dots[r]);
            }
        }
        if (through_output)
            add_outer(number, count, block, row, grad_lines, in.value_width, sums.v + begin * padded<T>(in.value_width));
    }

    for (int64_t i = 0; i < in.width * row; ++i) grad_query[i] = T(0);
    for (int64_t part = 0; part < parts; ++part) {
        if (sight[part] == hidden) continue;
        const int64_t begin = part * kBlock, number = begin + kBlock < in.keys ? kBlock : in.keys - begin;
        T *block = weights + begin * row, *grad_block = grads + begin * row;
        for (int64_t s = 0; s < number; ++s)
            for (int r = 0; r < registers; ++r) {
                const int64_t place = s * row + r * lanes;
                store<T>(block + place, load(block + place) * (load(grad_block + place) - dots[r]));
            }
        product<T, registers>(in.width, number, k + begin * in.k_stride[2], 1, in.k_stride[2], block, row, grad_query,
                              row, true);
        add_outer(number, count, block, row, lines, in.width, sums.k + begin * padded<T>(in.width));
    }
    T* grad_q = to.grad_q + b * to.grad_q_stride[0] + h * to.grad_q_stride[1];
    for (int64_t lane = 0; lane < count; ++lane)
        for (int64_t d = 0; d < in.width; ++d) {
            T& place = grad_q[queries[lane] * to.grad_q_stride[2] + d];
            const T value = grad_query[d * row + lane] * in.scale;
            // A row that was chosen twice adds twice, to zeros that the caller has written.
            place = rows && !through_output ? place + value : value;
        }
}

}  // namespace

template <class T>
int64_t attention_backward_scratch(const AttentionInput<T>& in) {
    const int64_t whole = blocks<T>(in.keys) * kBlock, row = 2 * Lanes<T>::count;
    const int64_t widths = 2 * padded<T>(in.width) + 2 * padded<T>(in.value_width) + in.width;
    return (widths + 2 * whole + kBlock + blocks<T>(in.keys)) * row +
           in.keys * (padded<T>(in.width) + padded<T>(in.value_width));
}

template <class T>
void attend_backward(const AttentionInput<T>& in, const AttentionGradients<T>& to, int64_t b, int64_t group,
                     T* scratch) {
    constexpr int lanes = Lanes<T>::count;
    const int64_t k_row = padded<T>(in.width), v_row = padded<T>(in.value_width);
    const Sums<T> sums = {scratch, scratch + in.keys * k_row};
    T* rest = sums.v + in.keys * v_row;
    for (int64_t i = 0; i < in.keys * (k_row + v_row); ++i) scratch[i] = T(0);

    const int64_t shared = in.heads / in.groups, lines = in.v && to.grad_out ? in.queries : in.row_count;
    for (int64_t h = group * shared; h < (group + 1) * shared; ++h)
        for (int64_t first = 0; first < lines; first += 2 * lanes) {
            const int64_t count = lines - first < 2 * lanes ? lines - first : 2 * lanes;
            const auto run = count > lanes ? tile_backward<T, 2> : tile_backward<T, 1>;
            run(in, to, b, h, first, count, sums, rest);
        }
    T* grad_k = to.grad_k + b * to.grad_k_stride[0] + group * to.grad_k_stride[1];
    for (int64_t s = 0; s < in.keys; ++s)
        for (int64_t d = 0; d < in.width; ++d) grad_k[s * to.grad_k_stride[2] + d] = sums.k[s * k_row + d] * in.scale;
    if (!to.grad_v) return;
    T* grad_v = to.grad_v + b * to.grad_v_stride[0] + group * to.grad_v_stride[1];
    for (int64_t s = 0; s < in.keys; ++s)
        for (int64_t e = 0; e < in.value_width; ++e) grad_v[s * to.grad_v_stride[2] + e] = sums.v[s * v_row + e];
}

#define CPGR_INSTANTIATE(T)                                                     \
    template int64_t attention_backward_scratch<T>(const AttentionInput<T>&);   \
    template void attend_backward<T>(const AttentionInput<T>&, const AttentionGradients<T>&, int64_t, int64_t, T*);
CPGR_INSTANTIATE(float)
CPGR_INSTANTIATE(double)

}  // namespace cpgr::CPGR_ISA
