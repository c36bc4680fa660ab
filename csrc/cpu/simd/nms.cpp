// Greedy suppression. From the best box down, a box that stays sweeps over the later ones, 64 at a time, and marks
// those that fall. Where this takes long, the boxes that are left are laid out by place, and a box sweeps only where a
// box with enough overlap can be; what falls is the same. No template of the standard library may be used here (see
// box.h).
#include "nms.h"

#include "../../box.h"
#include "vec.h"

namespace cpgr::CPGR_ISA {

namespace {

constexpr int kWord = 64;
// Sweeps over all that is left before it is worth laying out, which costs about as much as these sweeps; and the least
// number of boxes for which it is.
constexpr int64_t kFullSweeps = 16;
constexpr int64_t kLeastToLayOut = 256;

template <class T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float kLargest = __FLT_MAX__, kNan = __builtin_nanf(""), kTiny = 1e-30f;
};
template <>
struct Limits<double> {
    static constexpr double kLargest = __DBL_MAX__, kNan = __builtin_nan(""), kTiny = 1e-290;
};

// What an IoU is compared with. The quotient itself is compared, as torchvision does: inter > threshold * joint rounds
// differently. But inter / (total - inter) >= t is inter * (1 + 1 / t) >= total, so that a slightly lower and a
// slightly higher threshold decide nearly every pair without a division: the gaps are wider than the rounding.
template <class T>
struct Limit {
    T lower;  // 0 to 0.9999
    Vec<T> threshold, maybe, surely, tiny;

    explicit inline Limit(T value)
        : lower((value < T(1) ? value : T(1)) * T(0.9999)),
          threshold(Vec<T>::all(value)),
          maybe(Vec<T>::all(T(1) + T(1) / lower)),
          // Near zero quotients may underflow: then none is sure.
          surely(Vec<T>::all(value > T(1e-6) ? T(1) + T(1) / (value * T(1.0001)) : Limits<T>::kNan)),
          tiny(Vec<T>::all(Limits<T>::kTiny)) {}
};

// A box that stays, each number repeated over a register.
template <class T>
struct Pivot {
    Vec<T> x1, y1, x2, y2, area;

    inline Pivot(const Columns<T>& from, int64_t i)
        : x1(Vec<T>::all(from.x1[i])),
          y1(Vec<T>::all(from.y1[i])),
          x2(Vec<T>::all(from.x2[i])),
          y2(Vec<T>::all(from.y2[i])),
          area(Vec<T>::all(from.area[i])) {}
};

// Which of the boxes i, i + 1, ... of a register fall. kOverlap: the threshold is not negative, and the area of a box
// is positive and finite, or NaN where the box can have no part in anything.
template <bool kOverlap, class T>
inline uint32_t falling(const Columns<T>& boxes, int64_t i, const Pivot<T>& pivot, const Limit<T>& limit) {
    const Vec<T> zero = Vec<T>::all(0);
    const Vec<T> width =
        larger(smaller(Vec<T>::load(boxes.x2 + i), pivot.x2) - larger(Vec<T>::load(boxes.x1 + i), pivot.x1), zero);
    const Vec<T> height =
        smaller(Vec<T>::load(boxes.y2 + i), pivot.y2) - larger(Vec<T>::load(boxes.y1 + i), pivot.y1);
    const Vec<T> total = Vec<T>::load(boxes.area + i) + pivot.area;
    if (kOverlap) {
        const Vec<T> inter = width * height;  // not positive where they do not overlap
        const uint32_t surely = above(multiply_subtract(inter, limit.surely, limit.tiny), total);
        const uint32_t maybe = reaches(inter * limit.maybe, total);
        if ((maybe & ~surely) == 0) return surely;
    }
    const Vec<T> inter = width * larger(height, zero);
    return above(inter / (total - inter), limit.threshold);
}

// Marks what falls to a pivot among the boxes from `begin` to `end`, and in the registers that these share.
template <bool kOverlap, class T>
inline void sweep(const Columns<T>& boxes, int64_t begin, int64_t end, const Pivot<T>& pivot, const Limit<T>& limit,
                  uint64_t* fallen) {
    constexpr int lanes = Vec<T>::lanes;
    for (int64_t i = begin & -lanes; i < end; i += lanes)
        fallen[i / kWord] |= static_cast<uint64_t>(falling<kOverlap>(boxes, i, pivot, limit)) << (i % kWord);
}

// Boxes that overlap nothing, because they are empty, turned inside out, or beyond the largest number, become empty ones
// with an area of NaN.
template <class T>
void drop_areas(const Columns<T>& boxes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const T x1 = boxes.x1[i], y1 = boxes.y1[i], x2 = boxes.x2[i], y2 = boxes.y2[i], area = boxes.area[i];
        const bool real = (x2 - x1 > 0) & (area > 0) & (area <= Limits<T>::kLargest);
        boxes.x1[i] = real ? x1 : 0;
        boxes.y1[i] = real ? y1 : 0;
        boxes.x2[i] = real ? x2 : 0;
        boxes.y2[i] = real ? y2 : 0;
        boxes.area[i] = real ? area : Limits<T>::kNan;
    }
}

template <class T>
inline bool has_area(const Columns<T>& boxes, int64_t i) {
    return boxes.area[i] > 0;
}

inline void clear(uint64_t* fallen, int64_t count) {
    for (int64_t word = 0; word * kWord < count; ++word) fallen[word] = 0;
}

// Squeezes out the boxes before `first` and the fallen ones; returns how many are left.
template <class T>
int64_t squeeze(const Suppression<T>& p, int64_t first, int64_t count) {
    constexpr int lanes = Vec<T>::lanes;
    int64_t left = 0;
    for (int64_t i = first & -lanes; i < count; i += lanes) {
        uint32_t alive = static_cast<uint32_t>(~p.fallen[i / kWord] >> (i % kWord)) & Vec<T>::kAll;
        if (i < first) alive &= ~0u << (first - i);
        if (count - i < lanes) alive &= (1u << (count - i)) - 1;
        pack(p.boxes.x1 + left, p.boxes.x1 + i, alive);
        pack(p.boxes.y1 + left, p.boxes.y1 + i, alive);
        pack(p.boxes.x2 + left, p.boxes.x2 + i, alive);
        pack(p.boxes.y2 + left, p.boxes.y2 + i, alive);
        pack(p.boxes.area + left, p.boxes.area + i, alive);
        pack(p.places + left, p.places + i, alive);
        left += __builtin_popcount(alive);
    }
    return left;
}

// The cells of one axis. A box lies in the cell of its upper left corner; the cells are wrapped round, so that no
// coordinate is outside.
template <class T>
struct Axis {
    T scale;     // cells a pixel
    T longest;   // length of a box, and a little more
    T spare;     // 1 - lower, and a little more, where `lower` is the least overlap in lengths
    T stretch;   // 1 / lower
    int32_t cells;  // a power of two

    // It never falls as the coordinate grows.
    inline int32_t cell_of(T coordinate) const {
        constexpr T far = 1 << 20;
        T scaled = coordinate * scale;
        scaled = scaled > -far ? scaled : -far;
        scaled = scaled < far ? scaled : far;
        return static_cast<int32_t>(scaled + far);
    }

    // How far below and above another's corner can be. The overlap's length is at least `lower` of each box's length,
    // since the IoU is at most their quotient. So a corner above is within (1 - lower) * length, and one below within
    // (1 - lower) of its own length, which is at most length / lower. In floating point the corners compare as in
    // exact numbers, for subtracting and adding keep their order.
    inline T below(T length) const {
        const T other = length * stretch;
        return spare * (other < longest ? other : longest);
    }
    inline T beyond(T length) const { return spare * length; }
};

template <class T>
struct Grid {
    Axis<T> x, y;
    bool usable;

    inline int32_t cell(int32_t column, int32_t row) const {
        return (row & (y.cells - 1)) * x.cells + (column & (x.cells - 1));
    }
};

// Cells as high as the mean reach of a box and half as wide.
template <class T>
Grid<T> make_grid(const Columns<T>& boxes, int64_t count, T lower) {
    constexpr int lanes = 64 / sizeof(T);  // as many running sums as a register holds
    T width[lanes] = {}, height[lanes] = {}, widest[lanes] = {}, highest[lanes] = {}, least[lanes];
    for (int lane = 0; lane < lanes; ++lane) least[lane] = Limits<T>::kLargest;
    for (int64_t first = 0; first < count; first += lanes) {
        const int filled = count - first < lanes ? static_cast<int>(count - first) : lanes;
        const T *x1 = boxes.x1 + first, *y1 = boxes.y1 + first, *x2 = boxes.x2 + first, *y2 = boxes.y2 + first;
        const T* area = boxes.area + first;
        for (int lane = 0; lane < filled; ++lane) {
            const T w = x2[lane] - x1[lane], h = y2[lane] - y1[lane];
            width[lane] += w;
            height[lane] += h;
            widest[lane] = larger(w, widest[lane]);
            highest[lane] = larger(h, highest[lane]);
            least[lane] = smaller(area[lane], least[lane]);
        }
    }
    for (int lane = 1; lane < lanes; ++lane) {
        width[0] += width[lane];
        height[0] += height[lane];
        widest[0] = larger(widest[0], widest[lane]);
        highest[0] = larger(highest[0], highest[lane]);
        least[0] = smaller(least[0], least[lane]);
    }
    // Products of tiny areas round too coarsely for `lower`; that boxes overlap at all is certain still.
    if (least[0] < Limits<T>::kTiny) lower = 0;
    const T spare = T(1.0001) - lower, stretch = T(1) / lower;
    Grid<T> grid = {{0, widest[0] * T(1.0001), spare, stretch, 1}, {0, highest[0] * T(1.0001), spare, stretch, 1}, false};
    const T mean_width = width[0] / static_cast<T>(count), mean_height = height[0] / static_cast<T>(count);
    grid.x.scale = T(2) / (grid.x.below(mean_width) + grid.x.beyond(mean_width));
    grid.y.scale = T(1) / (grid.y.below(mean_height) + grid.y.beyond(mean_height));
    while (int64_t{4} * grid.x.cells * grid.y.cells <= count)
        (grid.x.cells <= grid.y.cells ? grid.x.cells : grid.y.cells) *= 2;
    // Lengths beyond all measure, or no box with an area.
    grid.usable = grid.x.scale > 0 && grid.x.scale < Limits<T>::kLargest && grid.y.scale > 0 &&
                  grid.y.scale < Limits<T>::kLargest;
    return grid;
}

// Lays the boxes out cell by cell: fills `binned`, the position of each box there, and `starts`.
template <class T>
void lay_out(const Suppression<T>& p, const Grid<T>& grid, int64_t count) {
    const int32_t cells = grid.x.cells * grid.y.cells;
    for (int32_t cell = 0; cell <= cells; ++cell) p.starts[cell] = 0;
    for (int64_t i = 0; i < count; ++i)
        p.positions[i] = grid.cell(grid.x.cell_of(p.boxes.x1[i]), grid.y.cell_of(p.boxes.y1[i]));
    for (int64_t i = 0; i < count; ++i) ++p.starts[p.positions[i]];
    int32_t sum = 0;
    for (int32_t cell = 0; cell <= cells; ++cell) {
        const int32_t size = p.starts[cell];
        p.starts[cell] = sum;
        sum += size;
    }
    for (int64_t i = 0; i < count; ++i) {
        const int32_t to = p.starts[p.positions[i]]++;
        p.positions[i] = to;
        p.binned.x1[to] = p.boxes.x1[i];
        p.binned.y1[to] = p.boxes.y1[i];
        p.binned.x2[to] = p.boxes.x2[i];
        p.binned.y2[to] = p.boxes.y2[i];
        p.binned.area[to] = p.boxes.area[i];
    }
    // What was advanced to each cell's end is the next cell's start.
    for (int32_t cell = cells; cell > 0; --cell) p.starts[cell] = p.starts[cell - 1];
    p.starts[0] = 0;
}

template <class T>
int64_t suppress_by_place(const Suppression<T>& p, const Grid<T>& grid, int64_t count, const Limit<T>& limit,
                          int64_t kept, int32_t* keep) {
    lay_out(p, grid, count);
    clear(p.fallen, count);
    for (int64_t i = 0; i < count && kept < p.most; ++i) {
        const int32_t at = p.positions[i];
        if (p.fallen[at / kWord] >> (at % kWord) & 1) continue;
        keep[kept++] = p.places[i];
        if (!has_area(p.boxes, i)) continue;
        const T x1 = p.boxes.x1[i], y1 = p.boxes.y1[i], width = p.boxes.x2[i] - x1, height = p.boxes.y2[i] - y1;
        const Pivot<T> pivot(p.boxes, i);
        int32_t left = grid.x.cell_of(x1 - grid.x.below(width)), right = grid.x.cell_of(x1 + grid.x.beyond(width));
        int32_t top = grid.y.cell_of(y1 - grid.y.below(height)), bottom = grid.y.cell_of(y1 + grid.y.beyond(height));
        if (right - left >= grid.x.cells) left = 0, right = grid.x.cells - 1;
        if (bottom - top >= grid.y.cells) top = 0, bottom = grid.y.cells - 1;
        left &= grid.x.cells - 1;
        right &= grid.x.cells - 1;
        for (int32_t row = top; row <= bottom; ++row) {
            const int32_t* starts = p.starts + grid.cell(0, row);
            if (left <= right) {
                sweep<true>(p.binned, starts[left], starts[right + 1], pivot, limit, p.fallen);
            } else {  // round the edge
                sweep<true>(p.binned, starts[left], starts[grid.x.cells], pivot, limit, p.fallen);
                sweep<true>(p.binned, starts[0], starts[right + 1], pivot, limit, p.fallen);
            }
        }
    }
    return kept;
}

template <bool kOverlap, class T>
int64_t run(const Suppression<T>& p, int32_t* keep) {
    const Limit<T> limit(p.threshold);
    if (kOverlap) drop_areas(p.boxes, p.count);
    clear(p.fallen, p.count);
    int64_t kept = 0, swept = 0;
    for (int64_t i = 0; i < p.count && kept < p.most; ++i) {
        if (p.fallen[i / kWord] >> (i % kWord) & 1) continue;
        keep[kept++] = p.places[i];
        if (kOverlap && !has_area(p.boxes, i)) continue;
        sweep<kOverlap>(p.boxes, i, p.count, Pivot<T>(p.boxes, i), limit, p.fallen);
        if (kOverlap && ++swept == kFullSweeps && p.count - i >= kLeastToLayOut) {
            const int64_t left = squeeze(p, i + 1, p.count);
            const Grid<T> grid = make_grid(p.boxes, left, limit.lower);
            if (left >= kLeastToLayOut && grid.usable)
                return suppress_by_place(p, grid, left, limit, kept, keep);
            Suppression<T> rest = p;
            rest.count = left;
            rest.most = p.most - kept;
            return kept + run<kOverlap>(rest, keep + kept);
        }
    }
    return kept;
}

}  // namespace

template <class T>
int64_t suppress(const Suppression<T>& problem, int32_t* keep) {
    return problem.threshold >= 0 ? run<true>(problem, keep) : run<false>(problem, keep);
}

template int64_t suppress<float>(const Suppression<float>&, int32_t*);
template int64_t suppress<double>(const Suppression<double>&, int32_t*);

}  // namespace cpgr::CPGR_ISA
