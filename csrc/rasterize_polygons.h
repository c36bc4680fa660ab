// COCO's rule for the pixels of a polygon, shared by the CPU and the CUDA kernels.
//
// The outline is drawn on a grid five times finer than the image: a vertex is rounded to a grid point (toward zero
// after adding a half), and an edge is one grid point for each step along its longer axis. Where the outline passes
// from fine column 5c + 2 to 5c + 3, the middle of pixel column c, every pixel of column c from some row down changes
// sides.
// Walking the outline finds these places one grid point after another; here each is computed from its edge directly.
// The sums and products are those of the walk, in double and in its order, so that the same point is found.
//
// Internal linkage, and no multiplication fused with an addition: see box.h.
#pragma once

#include <cstdint>

#ifndef CPGR_INLINE
#ifdef __CUDACC__
#define CPGR_INLINE static __host__ __device__ __forceinline__
#else
#define CPGR_INLINE static inline
#endif
#endif

namespace cpgr {

// Coordinates and canvas sides are at most this. Up to here the second axis of a walked edge provably never moves by
// two (rounding errors stay below 1 / steps), so each column is passed once, and all indices fit 32 bits.
constexpr double kPolygonLimit = 2097152;  // 2^21

struct GridPoint {
    int32_t x, y;
};

// False for NaN.
CPGR_INLINE bool within_limit(double coordinate) {
    return coordinate >= -kPolygonLimit && coordinate <= kPolygonLimit;
}

CPGR_INLINE GridPoint to_grid(double x, double y) {
    return {static_cast<int32_t>(5.0 * x + 0.5), static_cast<int32_t>(5.0 * y + 0.5)};
}

// The first row whose pixels lie below fine row `fine`: its middle 5 row + 2 is not above it. Row 0 at least.
CPGR_INLINE int32_t row_below(int32_t fine) { return fine <= 2 ? 0 : (fine + 2) / 5; }

// An edge, from its lower end along its longer axis.
struct PolygonEdge {
    double along, across;  // the lower end's coordinates on the longer and on the other axis
    double slope;
    bool steep;  // the longer axis is y
    int32_t first, last;  // pixel columns whose middle it passes; none if last < first
};

CPGR_INLINE PolygonEdge edge_between(GridPoint a, GridPoint b) {
    const int32_t wide = a.x < b.x ? b.x - a.x : a.x - b.x, high = a.y < b.y ? b.y - a.y : a.y - b.y;
    const int32_t left = a.x < b.x ? a.x : b.x, right = a.x < b.x ? b.x : a.x;
    PolygonEdge edge;
    edge.steep = wide < high;
    const bool swap = edge.steep ? a.y > b.y : a.x > b.x;
    const GridPoint low = swap ? b : a, top = swap ? a : b;
    edge.along = edge.steep ? low.y : low.x;
    edge.across = edge.steep ? low.x : low.y;
    // 0 / 0 for a single point, which passes no column.
    edge.slope = static_cast<double>(edge.steep ? top.x - low.x : top.y - low.y) / (edge.steep ? high : wide);
    edge.first = left <= 2 ? 0 : (left + 2) / 5;
    edge.last = right < 3 ? -1 : (right - 3) / 5;
    return edge;
}

// The row from which a gentle edge changes sides in `column`: that of the higher of the two grid points.
CPGR_INLINE int32_t gentle_row(const PolygonEdge& edge, int32_t column) {
    const double step = 5.0 * column + (edge.slope < 0 ? 3.0 : 2.0) - edge.along;
    return row_below(static_cast<int32_t>(edge.across + edge.slope * step + 0.5));
}

// True if a steep edge is past the middle of the column, `border` = 5 column + 3, after so many steps down.
CPGR_INLINE bool is_past(const PolygonEdge& edge, double steps, double border) {
    const double x = edge.across + edge.slope * steps + 0.5;
    return (x >= border) == (edge.slope > 0);
}

// The row from which a steep edge changes sides in `column`: that of the last grid point before it. The division gives
// the step to within less than one, and the walk's own sums on both sides settle it.
CPGR_INLINE int32_t steep_row(const PolygonEdge& edge, int32_t column) {
    const double border = 5.0 * column + 3.0;
    int32_t step = static_cast<int32_t>((border - 0.5 - edge.across) / edge.slope) + 1;
    const bool here = is_past(edge, step, border), before = is_past(edge, step - 1, border);
    step += !here ? 1 : before ? -1 : 0;
    return row_below(static_cast<int32_t>(edge.along) + step - 1);
}

}  // namespace cpgr
