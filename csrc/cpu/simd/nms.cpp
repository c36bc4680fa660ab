// Greedy suppression, one box after another from the best down: a box asks those that stay whether one of them makes it
// fall. Those are kept 16 to a chunk, so that one asks 16 at once. Where many stay, the chunks hang in a grid, and a
// box asks only the cells where a box with enough overlap can be; the answer is the same. No template of the standard
// library may be used here (see box.h).
#include "nms.h"

#include "vec.h"

namespace cpgr::CPGR_ISA {

namespace {

template <class T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float kLargest = __FLT_MAX__, kNan = __builtin_nanf(""), kTinyArea = 1e-30f;
};
template <>
struct Limits<double> {
    static constexpr double kLargest = __DBL_MAX__, kNan = __builtin_nan(""), kTinyArea = 1e-290;
};

// What an IoU is compared with. The quotient itself is compared, as torchvision does: inter > threshold * joint rounds
// differently. Most pairs are far below, though, and a slightly lower threshold rules them out without a division:
// inter / (total - inter) >= lower is inter * (1 + 1 / lower) >= total, and the gap between the thresholds is wider
// than the rounding.
template <class T>
struct Limit {
    T lower;  // 0 to 0.9999
    Vec<T> threshold, factor;

    explicit inline Limit(T value)
        : lower(value < T(1) ? value * T(0.9999) : T(0.9999)),
          threshold(Vec<T>::all(value)),
          factor(Vec<T>::all(T(1) + T(1) / lower)) {}
};

// The box that asks, each number repeated over a register.
template <class T>
struct Asking {
    Vec<T> x1, y1, x2, y2, area;
};

// kOverlap: the threshold is not negative and both boxes have a positive width, height and area. Then only a pair that
// overlaps can be above it.
template <bool kOverlap, class T>
inline bool falls(const Asking<T>& box, const Chunk<T>& chunk, const Limit<T>& limit) {
    constexpr int lanes = Vec<T>::lanes;
    const Vec<T> zero = Vec<T>::all(0);
    for (int i = 0; i < Chunk<T>::kSize && (lanes == Chunk<T>::kSize || i < chunk.count); i += lanes) {
        const Vec<T> width = larger(
            smaller(Vec<T>::load(chunk.x2 + i), box.x2) - larger(Vec<T>::load(chunk.x1 + i), box.x1), zero);
        const Vec<T> height = smaller(Vec<T>::load(chunk.y2 + i), box.y2) - larger(Vec<T>::load(chunk.y1 + i), box.y1);
        const Vec<T> total = Vec<T>::load(chunk.area + i) + box.area;
        if (kOverlap && !reaches(width * height * limit.factor, total)) continue;
        const Vec<T> inter = width * larger(height, zero);
        if (above(inter / (total - inter), limit.threshold)) return true;
    }
    return false;
}

template <bool kOverlap, class T>
inline bool falls_to_chain(const Asking<T>& box, const Chunk<T>* chunks, int32_t at, const Limit<T>& limit) {
    for (; at >= 0; at = chunks[at].next)
        if (falls<kOverlap>(box, chunks[at], limit)) return true;
    return false;
}

template <class T>
inline void add_to_chain(Suppression<T>& state, int32_t& chain, T x1, T y1, T x2, T y2, T area) {
    if (chain < 0 || state.chunks[chain].count == Chunk<T>::kSize) {
        Chunk<T>& fresh = state.chunks[state.chunks_used];
        // Nobody falls to a place that is not taken: the quotient is NaN.
        for (int i = 0; i < Chunk<T>::kSize; ++i)
            fresh.x1[i] = fresh.y1[i] = fresh.x2[i] = fresh.y2[i] = fresh.area[i] = Limits<T>::kNan;
        fresh.next = chain;
        fresh.count = 0;
        chain = state.chunks_used++;
    }
    Chunk<T>& chunk = state.chunks[chain];
    const int32_t i = chunk.count++;
    chunk.x1[i] = x1;
    chunk.y1[i] = y1;
    chunk.x2[i] = x2;
    chunk.y2[i] = y2;
    chunk.area[i] = area;
}

// The cell of a coordinate, before it is wrapped into the grid. It never falls as the coordinate grows.
template <class T>
inline int32_t cell_of(T coordinate, T scale) {
    constexpr T far = 1 << 20;
    T scaled = coordinate * scale;
    scaled = scaled > -far ? scaled : -far;
    scaled = scaled < far ? scaled : far;
    return static_cast<int32_t>(scaled + far);
}

// A box lies in the cell of its upper left corner. The grid is wrapped round, so no coordinate is outside.
template <class T>
inline int32_t& cell_at(const Suppression<T>& state, const Group<T>& group, int32_t column, int32_t row) {
    const int32_t mask = (1 << group.grid_bits) - 1;
    return state.cells[group.cells + ((row & mask) << group.grid_bits | (column & mask))];
}

// How far from a box of this length another's upper left corner can be, below and above, along one axis. The overlap's
// length is at least `lower` of each box's length, since the IoU is at most their quotient. So a corner above is within
// (1 - lower) * length; one below within (1 - lower) of its own length, which is at most length / lower.
// In float the corners compare as they do in exact numbers: subtracting and adding keep their order.
template <class T>
struct Reach {
    T below, above;

    inline Reach(T length, T longest, T lower) {
        const T spread = T(1.0001) - lower;
        const T other = length / lower;
        below = spread * (other < longest ? other : longest);
        above = spread * length;
    }
};

template <class T>
inline bool falls_in_grid(const Suppression<T>& state, const Group<T>& group, const Box<T>& place,
                          const Asking<T>& box, T area, const Limit<T>& limit) {
    // Products of tiny areas round too coarsely for `lower`; that they overlap at all is certain still.
    const T lower = group.loose || area < Limits<T>::kTinyArea ? T(0) : limit.lower;
    const Reach<T> across(place.x2 - place.x1, group.max_width, lower);
    const Reach<T> down(place.y2 - place.y1, group.max_height, lower);
    const int32_t wrap = (1 << group.grid_bits) - 1;
    const int32_t left = cell_of(place.x1 - across.below, group.scale_x);
    const int32_t top = cell_of(place.y1 - down.below, group.scale_y);
    int32_t right = cell_of(place.x1 + across.above, group.scale_x);
    int32_t bottom = cell_of(place.y1 + down.above, group.scale_y);
    if (right - left > wrap) right = left + wrap;
    if (bottom - top > wrap) bottom = top + wrap;

    for (int32_t row = top; row <= bottom; ++row)
        for (int32_t column = left; column <= right; ++column)
            if (falls_to_chain<true>(box, state.chunks, cell_at(state, group, column, row), limit)) return true;
    return false;
}

template <class T>
inline void add(Suppression<T>& state, Group<T>& group, T x1, T y1, T x2, T y2, T area) {
    int32_t& chain = group.cells < 0
                         ? group.chain
                         : cell_at(state, group, cell_of(x1, group.scale_x), cell_of(y1, group.scale_y));
    add_to_chain(state, chain, x1, y1, x2, y2, area);
    ++group.kept;
    const T width = (x2 - x1) * T(1.0001), height = (y2 - y1) * T(1.0001);
    if (width > group.max_width) group.max_width = width;
    if (height > group.max_height) group.max_height = height;
    if (area < Limits<T>::kTinyArea) group.loose = true;
}

// Hangs the boxes of a chain in a grid whose cells are as large as a box's reach.
template <class T>
void make_grid(Suppression<T>& state, Group<T>& group, const Limit<T>& limit) {
    T width = 0, height = 0;
    for (int32_t at = group.chain; at >= 0; at = state.chunks[at].next) {
        const Chunk<T>& chunk = state.chunks[at];
        for (int i = 0; i < chunk.count; ++i) {
            width += chunk.x2[i] - chunk.x1[i];
            height += chunk.y2[i] - chunk.y1[i];
        }
    }
    const Reach<T> across(width / group.kept, group.max_width, limit.lower);
    const Reach<T> down(height / group.kept, group.max_height, limit.lower);
    group.scale_x = T(1) / (across.below + across.above);
    group.scale_y = T(1) / (down.below + down.above);
    // Lengths beyond all measure stay in the chain.
    if (!(group.scale_x > 0 && group.scale_y > 0 && group.scale_x < Limits<T>::kLargest &&
          group.scale_y < Limits<T>::kLargest))
        return;

    const int32_t most = (group.kept + group.left) / 4;
    while (int64_t{4} << 2 * group.grid_bits <= most) ++group.grid_bits;
    group.cells = state.cells_used;
    const int32_t size = 1 << 2 * group.grid_bits;
    state.cells_used += size;
    for (int32_t i = 0; i < size; ++i) state.cells[group.cells + i] = -1;
    group.kept = 0;
    for (int32_t at = group.chain; at >= 0; at = state.chunks[at].next) {
        const Chunk<T>& chunk = state.chunks[at];
        for (int i = 0; i < chunk.count; ++i)
            add(state, group, chunk.x1[i], chunk.y1[i], chunk.x2[i], chunk.y2[i], chunk.area[i]);
    }
}

template <bool kOverlap, class T>
void run(Suppression<T>& state, const int32_t* order, int64_t count) {
    const Limit<T> limit(state.threshold);
    for (int64_t k = 0; k < count && state.kept < state.most; ++k) {
        const int32_t index = order[k];
        const T* from = state.boxes + int64_t{4} * index;
        const Box<T> place = {from[0], from[1], from[2], from[3]};
        const T width = place.x2 - place.x1, height = place.y2 - place.y1, area = width * height;
        Group<T>& group = state.groups[state.classes ? state.classes[index] : 0];
        --group.left;
        const bool active = !kOverlap || (width > 0 && height > 0 && area <= Limits<T>::kLargest);
        if (active) {
            const Asking<T> box = {Vec<T>::all(place.x1), Vec<T>::all(place.y1), Vec<T>::all(place.x2),
                                   Vec<T>::all(place.y2), Vec<T>::all(area)};
            if (group.cells < 0 ? falls_to_chain<kOverlap>(box, state.chunks, group.chain, limit)
                                : falls_in_grid(state, group, place, box, area, limit))
                continue;
        }
        state.keep[state.kept++] = index;
        if (!active || group.left == 0) continue;
        add(state, group, place.x1, place.y1, place.x2, place.y2, area);
        if (kOverlap && group.kept == kGridFrom && group.cells < 0 && group.left >= kGridFrom)
            make_grid(state, group, limit);
    }
}

}  // namespace

template <class T>
void suppress(Suppression<T>& state, const int32_t* order, int64_t count) {
    if (state.threshold >= 0)
        run<true>(state, order, count);
    else
        run<false>(state, order, count);
}

template void suppress<float>(Suppression<float>&, const int32_t*, int64_t);
template void suppress<double>(Suppression<double>&, const int32_t*, int64_t);

}  // namespace cpgr::CPGR_ISA
