#pragma once

#include <cstdint>

#include "../../box.h"
#include "../isa.h"

namespace cpgr {

// Up to 16 boxes that stay, in columns, and a link to more.
template <class T>
struct alignas(64) Chunk {
    static constexpr int kSize = 16;
    T x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];
    int32_t next;  // -1: none
    int32_t count;
};

// The boxes of one class that stay: a chain of chunks, or once they are many a grid of chains. All zero but `chain` and
// `cells`, which are -1, and `left`.
template <class T>
struct Group {
    int32_t chain;        // the first chunk, while there is no grid
    int32_t cells;        // the grid's place among the cells
    int32_t left;         // boxes that are still to come
    int32_t kept;         // boxes in the chain or grid
    int32_t grid_bits;    // the grid has 2^grid_bits cells along each axis
    T scale_x, scale_y;   // cells a pixel
    T max_width, max_height;
    bool loose;           // some area is so small that products with it may underflow
};

template <class T>
struct Suppression {
    const T* boxes;          // [n, 4]
    const int32_t* classes;  // [n], a group each, or null: all of group 0
    T threshold;
    Group<T>* groups;
    Chunk<T>* chunks;  // room for `chunks_needed`
    int32_t* cells;    // room for `cells_needed`
    int32_t chunks_used, cells_used;
    int64_t most;   // how many may stay
    int64_t kept;   // how many stay
    int64_t* keep;  // their indices, best first
};

// Boxes of a class that stay before it gets a grid. A grid has a quarter as many cells as its class has boxes at most,
// and a chunk that a cell has begun is all that is wasted of chunks.
constexpr int64_t kGridFrom = 128;
static inline int64_t cells_needed(int64_t boxes) { return boxes / 4; }
static inline int64_t chunks_needed(int64_t boxes, int64_t groups) {
    return boxes / 16 + boxes / 4 + boxes / 32 + (groups < boxes ? groups : boxes) + 1;
}

CPGR_DECLARE_SIMD(
    // Goes on with the boxes order[0 .. count), best first: appends to `keep` what stays of them.
    template <class T>
    void suppress(Suppression<T>& state, const int32_t* order, int64_t count);)

}  // namespace cpgr
