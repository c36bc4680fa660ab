// Pixels that packed masks share: AND and count, where both have tiles. No template of the standard library may be
// used here (see box.h).
#include "mask_iou.h"

#include "../../packed.h"
#include "lines.h"

namespace cpgr::CPGR_ISA {
namespace {

// Tiles of a strip of a mask: four masks' strips stay in the first cache, a block's in the second.
constexpr int32_t kStripTiles = 80;

static inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

static inline Tiles overlap(Tiles a, Tiles b) {
    return {larger(a.top, b.top), larger(a.left, b.left), smaller(a.bottom, b.bottom), smaller(a.right, b.right)};
}

static inline Tiles hull(Tiles a, Tiles b) {
    return {smaller(a.top, b.top), smaller(a.left, b.left), larger(a.bottom, b.bottom), larger(a.right, b.right)};
}

static inline bool same(Tiles a, Tiles b) {
    return a.top == b.top && a.left == b.left && a.bottom == b.bottom && a.right == b.right;
}

static inline int64_t size_of(Tiles t) {
    return t.top < t.bottom && t.left < t.right ? int64_t{t.bottom - t.top} * (t.right - t.left) : 0;
}

// shared[k] += pixels that `a` and b[k] share within `t`.
template <int Count>
static inline void count_shared(const uint64_t* a, const uint64_t* const* b, Tiles t, int32_t columns,
                                int64_t* const* shared) {
    int64_t rows = t.bottom - t.top, run = t.right - t.left;
    if (run == columns) {  // whole rows of tiles follow one another
        run *= rows;
        rows = 1;
    }
    Counter counters[Count];
    int64_t start = (int64_t{t.top} * columns + t.left) * kTileRows;
    for (int64_t y = 0; y < rows; ++y, start += int64_t{columns} * kTileRows) {
        for (int64_t at = start; at < start + run * kTileRows; at += kTileRows) {
            const Line line = Line::load(a + at);
            for (int k = 0; k < Count; ++k) counters[k].add(line & Line::load(b[k] + at));
        }
    }
    for (int k = 0; k < Count; ++k) *shared[k] += counters[k].total();
}

// The masks that reach into a strip.
static inline int reaching(const Packed& masks, Tiles strip, int* found) {
    int count = 0;
    for (int i = 0; i < masks.count; ++i) {
        found[count] = i;
        count += size_of(overlap(masks.tiles[i], strip)) > 0;
    }
    return count;
}

// Up to four masks, cut to a strip.
struct Four {
    const uint64_t* bits[4];
    Tiles tiles[4];
    int64_t column[4];  // of the result
    int count = 0;
    bool alike = true;  // they lie in the same tiles
    inline void add(const Packed& masks, int index, Tiles strip) {
        bits[count] = masks.bits + index * masks.stride;
        tiles[count] = overlap(masks.tiles[index], strip);
        column[count] = index;
        alike = alike && same(tiles[count], tiles[0]);
        ++count;
    }
};

// One mask against up to four others. Where their overlaps are about the same rectangle, the mask is read once for
// all four.
static inline void against_four(const uint64_t* a, Tiles tiles, const Four& others, int32_t columns, int64_t* inter) {
    int64_t* shared[4];
    if (others.count == 4 && others.alike) {
        const Tiles common = overlap(tiles, others.tiles[0]);
        if (size_of(common) == 0) return;
        for (int k = 0; k < 4; ++k) shared[k] = inter + others.column[k];
        return count_shared<4>(a, others.bits, common, columns, shared);
    }
    const uint64_t* b[4];
    Tiles common[4], around = {};
    int found = 0;
    int64_t work = 0;
    for (int k = 0; k < others.count; ++k) {
        const Tiles t = overlap(tiles, others.tiles[k]);
        const int64_t size = size_of(t);
        if (size == 0) continue;
        b[found] = others.bits[k];
        common[found] = t;
        shared[found] = inter + others.column[k];
        around = found ? hull(around, t) : t;
        work += size;
        ++found;
    }
    // Tiles outside an overlap count nothing, so joining is always right; it pays up to a quarter more tiles.
    if (found == 4 && 4 * size_of(around) <= work + work / 4)
        return count_shared<4>(a, b, around, columns, shared);
    for (int k = 0; k < found; ++k) count_shared<1>(a, b + k, common[k], columns, shared + k);
}

}  // namespace

void intersect_masks(Packed a, Packed b, int32_t rows, int32_t columns, int64_t* inter) {
    if (columns == 0) return;
    const int32_t height = larger(kStripTiles / columns, 1);
    int from_a[kMaskBlock], from_b[kMaskBlock];
    for (int32_t top = 0; top < rows; top += height) {
        const Tiles strip = {top, 0, smaller(top + height, rows), columns};
        const int count_a = reaching(a, strip, from_a), count_b = reaching(b, strip, from_b);
        for (int j = 0; j < count_b; j += 4) {
            Four others;
            for (int k = j; k < smaller(j + 4, count_b); ++k) others.add(b, from_b[k], strip);
            for (int i = 0; i < count_a; ++i)
                against_four(a.bits + from_a[i] * a.stride, a.tiles[from_a[i]], others, columns,
                             inter + from_a[i] * kMaskBlock);
        }
    }
}

int64_t intersect_pair(const uint64_t* a, Tiles tiles_a, const uint64_t* b, Tiles tiles_b, int32_t columns) {
    const Tiles common = overlap(tiles_a, tiles_b);
    int64_t count = 0;
    int64_t* shared = &count;
    if (size_of(common) > 0) count_shared<1>(a, &b, common, columns, &shared);
    return count;
}

}  // namespace cpgr::CPGR_ISA
