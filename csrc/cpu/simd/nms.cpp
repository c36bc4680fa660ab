// Greedy suppression in blocks. The boxes of a block are settled among themselves; those that stay then sweep over
// all later boxes together, so that each later box is loaded once a block and not once a kept box. Fallen boxes are
// squeezed out as the sweep goes, so later sweeps are shorter. No template of the standard library may be used here
// (see box.h).
#include "nms.h"

#include "vec.h"

namespace cpgr::CPGR_ISA {

namespace {

constexpr int kBlock = 64;

// The boxes of a block that stay, each coordinate repeated over a register when it is used.
template <class T>
struct Pivots {
    int count = 0;
    T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];

    inline void add(const Running<T>& from, int64_t i) {
        x1[count] = from.x1[i];
        y1[count] = from.y1[i];
        x2[count] = from.x2[i];
        y2[count] = from.y2[i];
        area[count] = from.area[i];
        ++count;
    }
};

// What an IoU is compared with. The quotient itself is compared, as torchvision does: inter > threshold * joint rounds
// differently. Most pairs are far below, though, and the product with a slightly lower threshold rules them out without
// a division: where the quotient is above, inter reaches that product, since rounding keeps the order.
template <class T>
struct Limit {
    Vec<T> threshold, lower;
    bool divide_always;

    explicit inline Limit(T value)
        : threshold(Vec<T>::all(value)),
          lower(Vec<T>::all(value * T(0.9999))),
          // Zero, negative, NaN, and what is so small that products underflow.
          divide_always(!(value > T(1e-6))) {}

    inline uint32_t above_threshold(Vec<T> inter, Vec<T> joint) const {
        if (!divide_always && !reaches(inter, lower * joint)) return 0;
        return above(inter / joint, threshold);
    }
};

// A register of boxes, to be tested against one pivot after another.
template <class T>
struct Candidates {
    Vec<T> x1, y1, x2, y2, area;

    static inline Candidates load(const Running<T>& from, int64_t i) {
        return {Vec<T>::load(from.x1 + i), Vec<T>::load(from.y1 + i), Vec<T>::load(from.x2 + i),
                Vec<T>::load(from.y2 + i), Vec<T>::load(from.area + i)};
    }

    // The lanes whose IoU with pivot p is above the threshold. A NaN coordinate makes the area NaN and the answer no.
    inline uint32_t fall(const Pivots<T>& pivots, int p, const Limit<T>& limit) const {
        const Vec<T> zero = Vec<T>::all(0);
        const Vec<T> width = larger(
            smaller(x2, Vec<T>::all(pivots.x2[p])) - larger(x1, Vec<T>::all(pivots.x1[p])), zero);
        const Vec<T> height = larger(
            smaller(y2, Vec<T>::all(pivots.y2[p])) - larger(y1, Vec<T>::all(pivots.y1[p])), zero);
        const Vec<T> inter = width * height;
        return limit.above_threshold(inter, Vec<T>::all(pivots.area[p]) + area - inter);
    }
};

inline uint32_t lanes_below(int64_t limit, int lanes) {
    return limit >= lanes ? (1u << lanes) - 1 : (1u << limit) - 1;
}

}  // namespace

template <class T>
int64_t suppress(Running<T> boxes, int64_t count, T threshold, int32_t* keep) {
    constexpr int lanes = Vec<T>::lanes;
    const Limit<T> limit(threshold);
    int64_t kept = 0;
    while (count > 0) {
        const int64_t block = count < kBlock ? count : kBlock;
        Pivots<T> pivots;
        uint64_t fallen = 0;
        for (int64_t i = 0; i < block; ++i) {
            if (fallen >> i & 1) continue;
            keep[kept++] = boxes.place[i];
            pivots.add(boxes, i);
            // Lanes at or before i are marked too; they are settled, so it does not matter.
            for (int64_t j = i / lanes * lanes; j < block; j += lanes)
                fallen |= static_cast<uint64_t>(Candidates<T>::load(boxes, j)
                                                    .fall(pivots, pivots.count - 1, limit))
                          << j;
        }

        int64_t left = 0;
        for (int64_t j = block; j < count; j += lanes) {
            const Candidates<T> candidates = Candidates<T>::load(boxes, j);
            uint32_t alive = lanes_below(count - j, lanes);
            for (int p = 0; p < pivots.count && alive; ++p) alive &= ~candidates.fall(pivots, p, limit);
            // In place: `left` is at least a block behind `j`, so nothing unread is written over.
            pack(boxes.x1 + left, boxes.x1 + j, alive);
            pack(boxes.y1 + left, boxes.y1 + j, alive);
            pack(boxes.x2 + left, boxes.x2 + j, alive);
            pack(boxes.y2 + left, boxes.y2 + j, alive);
            pack(boxes.area + left, boxes.area + j, alive);
            pack(boxes.place + left, boxes.place + j, alive);
            left += __builtin_popcount(alive);
        }
        count = left;
    }
    return kept;
}

template int64_t suppress<float>(Running<float>, int64_t, float, int32_t*);
template int64_t suppress<double>(Running<double>, int64_t, double, int32_t*);

}  // namespace cpgr::CPGR_ISA
