// The mass of attention maps in boxes over area^gamma (reference.region_attention).
#pragma once

#include <cstdint>

namespace cpgr {

struct CellGrid {
    int64_t rows, columns;
    double width, height;  // of the frame, in the units of the boxes
    double gamma, least_area;
};

// maps [batch, queries, rows * columns], boxes [batch, count, 4]: out [batch, queries, count]. Both are contiguous but for
// the step from one batch to the next, which may be 0.
template <class T>
void region_attention(const T* maps, int64_t map_step, const T* boxes, int64_t box_step, int64_t batch, int64_t queries,
                      int64_t count, const CellGrid& grid, T* out, int threads);

// grad [batch, queries, count]: grad_maps [batch, queries, rows * columns], written whole.
template <class T>
void region_attention_backward(const T* grad, const T* boxes, int64_t box_step, int64_t batch, int64_t queries,
                               int64_t count, const CellGrid& grid, T* grad_maps, int threads);

}  // namespace cpgr
