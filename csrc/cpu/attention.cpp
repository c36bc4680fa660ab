#include "attention.h"

#include <memory>
#include <new>

#include "parallel.h"
#include "scratch.h"
#include "simd/attention.h"

namespace cpgr {
namespace {

// With fewer tiles than this the heads are shared out too. It depends on sizes alone, so that results do not depend on
// the number of threads.
constexpr int64_t kEnoughWork = 16;

}  // namespace

template <class T, class S>
void attention_forward(const AttentionInput<T, S>& in, const AttentionOutput<T>& to, int threads) {
    const auto attend_tile = CPGR_SIMD(attend<T, S>);
    const auto attend_rows = CPGR_SIMD(attend_few<T, S>);
    const bool few = !in.v && in.row_count <= kFewRows;
    const int64_t lines = in.v ? in.queries : in.row_count, tile = few ? lines : CPGR_SIMD(attention_tile<T>)();
    const int64_t tiles = (lines + tile - 1) / tile, scratch = CPGR_SIMD(attention_scratch<T, S>)(in);
    const int64_t parts = std::clamp<int64_t>(kEnoughWork / (in.batch * tiles), 1, in.heads);

    const int64_t size = in.batch * in.row_count * in.keys;
    const std::unique_ptr<T[]> other_maps(parts > 1 ? new T[(parts - 1) * size] : nullptr);
    parallel_for(in.batch * tiles * parts, 1, threads, [&](int64_t begin, int64_t end) {
        const Scratch<T> mine(scratch);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t part = i % parts, b = i / parts / tiles, first = i / parts % tiles * tile;
            const int64_t head = in.heads * part / parts, head_end = in.heads * (part + 1) / parts;
            T* map = part ? other_maps.get() + (part - 1) * size : to.map;
            if (few)
                attend_rows(in, to, b, head, head_end, map, mine.get());
            else
                attend_tile(in, to, b, first, std::min(tile, lines - first), head, head_end, map, mine.get());
        }
    });
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < size; ++i) to.map[i] += other_maps[(part - 1) * size + i];
}

#define CPGR_INSTANTIATE(T, S) \
    template void attention_forward<T, S>(const AttentionInput<T, S>&, const AttentionOutput<T>&, int);
CPGR_INSTANTIATE(float, float)
CPGR_INSTANTIATE(float, Bfloat16)
CPGR_INSTANTIATE(double, double)

}  // namespace cpgr
