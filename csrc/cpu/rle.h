// COCO's run-length encoding of a mask. The mask is read column by column; runs of outside and inside take turns,
// outside first. As text, a run is a number in groups of five bits, lowest first, each group plus 48 a character, bit
// 5 set where another group follows, and the top bit of the last group its sign; from the fourth run on it is the
// difference to the run two before.
//
// Nothing is trusted: every run is checked before it is painted.
#pragma once

#include <cstdint>
#include <cstring>

#include "../packed.h"

namespace cpgr {

enum class RleFault : uint8_t { none, character, truncated, negative, too_long, too_short };

// Run lengths as COCO's text.
class TextRuns {
public:
    TextRuns(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}

    bool more() const { return at_ != end_; }

    RleFault next(int64_t* run) {
        constexpr int most_bits = 60;  // two such numbers add up without overflow
        int64_t value = 0;
        int shift = 0;
        for (bool going_on = true; going_on; shift += 5) {
            if (at_ == end_) return RleFault::truncated;
            const int group = *at_++ - 48;
            if (group < 0 || group > 63) return RleFault::character;
            if (shift == most_bits) return RleFault::too_long;
            value |= static_cast<int64_t>(group & 31) << shift;
            going_on = group & 32;
            if (!going_on && (group & 16)) value -= int64_t{32} << shift;
        }
        if (index_++ > 2) value += before_last_;
        before_last_ = last_;
        last_ = value;
        *run = value;
        return RleFault::none;
    }

private:
    const uint8_t *at_, *end_;
    int64_t index_ = 0, last_ = 0, before_last_ = 0;
};

// Run lengths as 64-bit integers, at any address.
class NumberRuns {
public:
    NumberRuns(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}

    bool more() const { return end_ - at_ >= static_cast<int64_t>(sizeof(int64_t)); }

    RleFault next(int64_t* run) {
        std::memcpy(run, at_, sizeof(*run));
        at_ += sizeof(*run);
        return RleFault::none;
    }

private:
    const uint8_t *at_, *end_;
};

// Paints the runs into `bits`, written whole. `carry` has grid.columns words.
//
// The runs go down the columns and the bits along the rows, yet nothing is transposed: the bit is flipped where a run
// begins or ends in a column, and every row is then XORed with the row above.
template <class Runs>
RleFault paint_runs(Runs runs, PackedGrid grid, uint64_t* bits, uint64_t* carry) {
    for (int64_t k = 0; k < grid.words(); ++k) bits[k] = 0;
    const auto flip = [&](int64_t row, int64_t column) {
        const int64_t tile = row / kTileRows * grid.columns + column / kTileColumns;
        bits[tile * kTileRows + row % kTileRows] ^= uint64_t{1} << (column % kTileColumns);
    };

    int64_t left = grid.height * grid.width, row = 0, column = 0, first = grid.width, last = -1;
    for (bool inside = false; runs.more(); inside = !inside) {
        int64_t run;
        if (const RleFault fault = runs.next(&run); fault != RleFault::none) return fault;
        if (run < 0) return RleFault::negative;
        if (run > left) return RleFault::too_long;
        if (run == 0) continue;
        left -= run;
        const int64_t start = column;
        if (inside) flip(row, column);
        row += run;
        if (row >= grid.height) {
            column += row / grid.height;
            row %= grid.height;
            if (inside)
                for (int64_t x = start + 1; x < column; ++x) flip(0, x);
            if (inside && row > 0) flip(0, column);
        }
        if (!inside) continue;
        if (row > 0) flip(row, column);
        if (start < first) first = start;
        last = row > 0 ? column : column - 1;
    }
    if (left > 0) return RleFault::too_short;
    if (last < 0) return RleFault::none;

    first /= kTileColumns;
    last /= kTileColumns;
    for (int64_t x = first; x <= last; ++x) carry[x] = 0;
    for (int64_t y = 0; y < grid.rows; ++y)
        for (int64_t x = first; x <= last; ++x) {
            uint64_t* tile = bits + (y * grid.columns + x) * kTileRows;
            uint64_t word = carry[x];
            for (int r = 0; r < kTileRows; ++r) tile[r] = word ^= tile[r];
            carry[x] = word;
        }
    // The last tiles reach below the mask.
    const int64_t rows = grid.height - (grid.rows - 1) * kTileRows;
    for (int64_t x = first; x <= last; ++x)
        for (int64_t r = rows; r < kTileRows; ++r)
            bits[((grid.rows - 1) * grid.columns + x) * kTileRows + r] = 0;
    return RleFault::none;
}

}  // namespace cpgr
