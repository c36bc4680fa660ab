// Boxes are taken 64 at a time, best first. The 64 are settled among themselves by one warp; those that stay then make
// later boxes fall. Up to 1024 boxes an image, one block of threads does all of it in shared memory, sorting included.
// Beyond that, all pairs are first compared into a bit matrix by many blocks, and one block an image walks it.
#include "nms.h"

#include "../box.h"
#include "../rounding.h"
#include "../score_key.h"

namespace cpgr::cuda {
namespace {

constexpr int kBlock = 64;  // boxes a block: one bit each of a word
constexpr int kWalkers = 1024;
constexpr int kLoads = 8;  // under way at a time in each thread
constexpr unsigned kWarp = 0xffffffffu;

__device__ __forceinline__ float greater(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double greater(double a, double b) { return fmax(a, b); }
__device__ __forceinline__ float lesser(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double lesser(double a, double b) { return fmin(a, b); }

// What an IoU is compared with. The quotient itself is compared, as torchvision does. But inter / (total - inter) > t
// needs inter * (1 + 1 / t) >= total, so that a slightly lower threshold rules most pairs out without a division.
template <class T>
struct Limit {
    T threshold, maybe;  // `maybe` is NaN for a threshold below zero, and rules nothing out
};

template <class T>
Limit<T> limit_of(double iou_threshold) {
    const T threshold = round_down<T>(iou_threshold);
    const T lower = (threshold < T(1) ? threshold : T(1)) * T(0.9999);
    return {threshold, lower >= T(0) ? T(1) + T(1) / lower : std::numeric_limits<T>::quiet_NaN()};
}

// A NaN coordinate makes an area NaN, which rules nothing out and makes the quotient NaN: the answer is no.
template <class T>
__device__ __forceinline__ bool falls(Box<T> a, T area_a, Box<T> b, T area_b, Limit<T> limit) {
    const T width = greater(lesser(a.x2, b.x2) - greater(a.x1, b.x1), T(0));
    const T height = greater(lesser(a.y2, b.y2) - greater(a.y1, b.y1), T(0));
    const T inter = width * height, total = area_a + area_b;
    if (inter * limit.maybe < total) return false;
    return inter / (total - inter) > limit.threshold;
}

template <class T>
__device__ __forceinline__ Box<T> box_at(const T* __restrict__ boxes, int64_t i) {
    return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

__device__ __forceinline__ uint64_t bit(int i) { return uint64_t{1} << i; }
__device__ __forceinline__ bool has(uint64_t word, int i) { return word >> i & 1; }
__device__ __forceinline__ int number_of(uint64_t word) { return __popcll(word); }

__device__ __forceinline__ uint64_t warp_or(uint64_t word) {
    const uint64_t high = __reduce_or_sync(kWarp, static_cast<unsigned>(word >> 32));
    return high << 32 | __reduce_or_sync(kWarp, static_cast<unsigned>(word));
}

// Which of the `open` boxes of a block stay, by one warp. Bit j of rows[i], j > i: box i, if it stays, makes j fall.
// Each round, the boxes that no open box can make fall stay, and what they make fall falls; the first open box is
// always among them. As many rounds as the longest chain of boxes that hang on each other.
__device__ __forceinline__ uint64_t settle(const uint64_t* rows, uint64_t open) {
    const int lane = threadIdx.x % 32;
    const uint64_t low = rows[lane], high = rows[lane + 32];
    const auto hit_by = [=](uint64_t boxes) {
        return warp_or((has(boxes, lane) ? low : 0) | (has(boxes, lane + 32) ? high : 0));
    };
    uint64_t stay = 0;
    while (open) {
        const uint64_t fresh = open & ~hit_by(open);
        stay |= fresh;
        open &= ~(fresh | hit_by(fresh));
    }
    return stay;
}

__device__ __forceinline__ uint64_t first_bits(int64_t size) { return size >= kBlock ? ~uint64_t{0} : bit(size) - 1; }

// Sorts `size` keys, a power of two, ascending. A stage with a stride up to 32 stays within the 64 keys of a warp.
__device__ void bitonic_sort(uint64_t* keys, int size) {
    const int thread = threadIdx.x;
    for (int length = 2; length <= size; length *= 2) {
        for (int stride = length / 2; stride > 0; stride /= 2) {
            if (thread < size / 2) {
                const int low = (thread & ~(stride - 1)) * 2 + (thread & (stride - 1)), high = low + stride;
                const uint64_t a = keys[low], b = keys[high];
                if ((a > b) == ((low & length) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            const int next = stride > 1 ? stride / 2 : length;
            if (stride <= 32 && next <= 32)
                __syncwarp();
            else
                __syncthreads();
        }
    }
}

// One block an image, with at least as many threads as boxes: a power of two from 64 to kNmsSmall.
__global__ void __launch_bounds__(kNmsSmall)
    suppress_image(NmsImages<float> images, const float* __restrict__ scores, const int64_t* __restrict__ counts,
                   bool has_least, float least, Limit<float> limit) {
    __shared__ uint64_t keys[kNmsSmall];
    __shared__ Box<float> boxes[kNmsSmall];
    __shared__ float areas[kNmsSmall];
    __shared__ int64_t classes[kNmsSmall];
    __shared__ uint64_t rows[kBlock];
    __shared__ uint32_t fallen[kNmsSmall / 32];
    __shared__ uint64_t staying;
    const int thread = threadIdx.x, threads = blockDim.x, lane = thread % 32;
    const int64_t first = blockIdx.x * images.count;

    // Equal scores keep their order, since the index is part of the key. Boxes that take no part come last.
    const int64_t given = counts ? counts[blockIdx.x] : images.count;
    bool real = thread < given && thread < images.count;
    uint64_t key = ~uint64_t{0};
    if (real) {
        const float score = scores[first + thread];
        real = !has_least || score > least;
        if (real) key = static_cast<uint64_t>(descending_key(score)) << 32 | static_cast<unsigned>(thread);
    }
    keys[thread] = key;
    if (lane == 0) fallen[thread / 32] = 0;
    const int count = __syncthreads_count(real);
    bitonic_sort(keys, threads);

    const auto index_of = [&](int place) { return static_cast<int64_t>(keys[place] & 0xffffffffu); };
    if (thread < count) {
        const int64_t from = first + index_of(thread);
        const Box<float> box = box_at(images.boxes, from);
        boxes[thread] = box;
        areas[thread] = area_of(box);
        classes[thread] = images.idxs ? images.idxs[from] : 0;
    }
    __syncthreads();

    int64_t* indices = images.indices + blockIdx.x * images.most;
    int64_t total = 0;
    for (int base = 0; base < count && total < images.most; base += kBlock) {
        const uint64_t gone = static_cast<uint64_t>(fallen[base / 32 + 1]) << 32 | fallen[base / 32];
        const uint64_t open = first_bits(count - base) & ~gone;

        // A warp compares box i with half of the block.
        const int column = thread % kBlock;
        for (int i = thread / kBlock; i < kBlock; i += threads / kBlock) {
            bool hit = false;
            if (has(open, i) && has(open, column) && column > i)
                hit = classes[base + i] == classes[base + column] &&
                      falls(boxes[base + i], areas[base + i], boxes[base + column], areas[base + column], limit);
            const unsigned half = __ballot_sync(kWarp, hit);
            if (lane == 0) reinterpret_cast<uint32_t*>(rows)[2 * i + column / 32] = half;
        }
        __syncthreads();
        if (thread < 32) {
            const uint64_t stay = settle(rows, open);
            if (lane == 0) staying = stay;
        }
        __syncthreads();

        const uint64_t stay = staying;
        if (thread < kBlock && has(stay, thread)) {
            const int64_t place = total + number_of(stay & (bit(thread) - 1));
            if (place < images.most) indices[place] = index_of(base + thread);
        }
        total += number_of(stay);

        // Each thread has a later box.
        const int later = base + kBlock + thread;
        bool hit = false;
        if (later < count && !(fallen[later / 32] >> lane & 1)) {
            const Box<float> box = boxes[later];
            const float area = areas[later];
            const int64_t idx = classes[later];
            for (uint64_t left = stay; left && !hit; left &= left - 1) {
                const int i = base + __ffsll(static_cast<long long>(left)) - 1;
                hit = classes[i] == idx && falls(boxes[i], areas[i], box, area, limit);
            }
        }
        const unsigned hits = __ballot_sync(kWarp, hit);
        if (lane == 0 && later < count) fallen[later / 32] |= hits;
        __syncthreads();
    }

    const int64_t kept = total < images.most ? total : images.most;
    if (thread == 0) images.kept[blockIdx.x] = kept;
    for (int64_t place = kept + thread; place < images.most; place += threads) indices[place] = -1;
}

// Bit j of falls[i][w]: box i of the order, if it stays, makes box 64 w + j fall. Only words at or right of the
// diagonal are written, and only those are read.
template <class T>
__global__ void compare(NmsImages<T> images, const int64_t* __restrict__ order, const int64_t* __restrict__ real,
                        Limit<T> limit, uint64_t* __restrict__ scratch) {
    const int64_t words = (images.count + kBlock - 1) / kBlock;
    const int64_t word = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kBlock, image = blockIdx.z;
    const int64_t count = real ? real[image] : images.count;
    const int64_t base = word * kBlock;
    if (word < blockIdx.y || base >= count) return;
    order += image * images.count;
    const T* boxes = images.boxes + image * images.count * 4;
    const int64_t* idxs = images.idxs ? images.idxs + image * images.count : nullptr;
    uint64_t* falls_to = scratch + image * (images.count + 1) * words;

    __shared__ Box<T> others[kBlock];
    __shared__ T other_areas[kBlock];
    __shared__ int64_t other_idxs[kBlock];
    const int thread = threadIdx.x;
    const int size = static_cast<int>(count - base < kBlock ? count - base : kBlock);
    if (thread < size) {
        const int64_t other = order[base + thread];
        const Box<T> box = box_at(boxes, other);
        others[thread] = box;
        other_areas[thread] = area_of(box);
        other_idxs[thread] = idxs ? idxs[other] : 0;
    }
    __syncthreads();

    const int64_t row = first + thread;
    if (row >= count) return;
    const int64_t index = order[row];
    const Box<T> box = box_at(boxes, index);
    const T area = area_of(box);
    const int64_t idx = idxs ? idxs[index] : 0;
    uint64_t bits = 0;
    for (int j = word == blockIdx.y ? thread + 1 : 0; j < size; ++j)
        if (other_idxs[j] == idx && falls(box, area, others[j], other_areas[j], limit)) bits |= bit(j);
    falls_to[row * words + word] = bits;
}

// One block an image. `fallen`, behind the matrix, has one bit a box.
template <class T>
__global__ void __launch_bounds__(kWalkers)
    walk(NmsImages<T> images, const int64_t* __restrict__ order, const int64_t* __restrict__ real, uint64_t* scratch) {
    __shared__ uint64_t within[kBlock];
    __shared__ int list[kBlock];
    __shared__ uint64_t staying;
    const int64_t row_words = (images.count + kBlock - 1) / kBlock, image = blockIdx.x;
    const int64_t count = real ? real[image] : images.count;
    const int64_t words = (count + kBlock - 1) / kBlock;
    const uint64_t* falls_to = scratch + image * (images.count + 1) * row_words;
    uint64_t* fallen = scratch + image * (images.count + 1) * row_words + images.count * row_words;
    int64_t* indices = images.indices + image * images.most;
    order += image * images.count;
    const int thread = threadIdx.x;
    int64_t total = 0;

    for (int64_t word = thread; word < words; word += kWalkers) fallen[word] = 0;
    // The next word's own rows are on their way while this one's are used.
    uint64_t next = thread < kBlock && thread < count ? falls_to[thread * row_words] : 0;
    for (int64_t word = 0; word < words && total < images.most; ++word) {
        const int64_t base = word * kBlock;
        if (thread < kBlock) {
            within[thread] = next;
            const int64_t row = base + kBlock + thread;
            next = row < count ? falls_to[row * row_words + word + 1] : 0;
        }
        __syncthreads();
        if (thread < 32) {
            const uint64_t stay = settle(within, first_bits(count - base) & ~fallen[word]);
            if (thread == 0) staying = stay;
        }
        __syncthreads();

        const uint64_t stay = staying;
        if (thread < kBlock && has(stay, thread)) {
            const int rank = number_of(stay & (bit(thread) - 1));
            list[rank] = thread;
            if (total + rank < images.most) indices[total + rank] = order[base + thread];
        }
        const int size = number_of(stay);
        total += size;
        __syncthreads();

        // Each thread has a later word and every `groups`-th box that stays.
        const int64_t later_words = words - word - 1;
        if (size > 0 && later_words > 0) {
            const int64_t columns = later_words < kWalkers ? later_words : kWalkers;
            const int groups = static_cast<int>(kWalkers / columns), group = static_cast<int>(thread / columns);
            for (int64_t later = thread % columns; group < groups && later < later_words; later += columns) {
                const uint64_t* column = falls_to + base * row_words + word + 1 + later;
                uint64_t gone = 0;
                for (int i = group; i < size; i += kLoads * groups) {
#pragma unroll
                    for (int load = 0; load < kLoads; ++load) {
                        const int rank = i + load * groups;
                        gone |= column[list[rank < size ? rank : size - 1] * row_words];
                    }
                }
                if (gone) atomicOr(reinterpret_cast<unsigned long long*>(fallen + word + 1 + later), gone);
            }
        }
    }

    const int64_t kept = total < images.most ? total : images.most;
    if (thread == 0) images.kept[image] = kept;
    for (int64_t place = kept + thread; place < images.most; place += kWalkers) indices[place] = -1;
}

template <class T>
NmsImages<T> images_from(NmsImages<T> images, int64_t first, int64_t batch) {
    images.boxes += first * images.count * 4;
    if (images.idxs) images.idxs += first * images.count;
    images.indices += first * images.most;
    images.kept += first;
    images.batch = batch;
    return images;
}

}  // namespace

void nms_small(const NmsImages<float>& images, const float* scores, const int64_t* counts,
               const double* score_threshold, Place place) {
    const cudaStream_t stream = enter(place, "nms");
    if (images.count > kNmsSmall) throw std::length_error("nms: too many boxes for one block of threads");
    if (images.batch == 0) return;
    int threads = kBlock;
    while (threads < images.count) threads *= 2;
    const float least = score_threshold ? static_cast<float>(*score_threshold) : 0.0f;
    suppress_image<<<static_cast<unsigned>(images.batch), threads, 0, stream>>>(
        images, scores, counts, score_threshold != nullptr, least, limit_of<float>(images.iou_threshold));
    check(cudaGetLastError(), "nms");
}

int64_t nms_words(int64_t count) { return (count + 1) * ceil_div(count, kBlock); }

template <class T>
void nms_large(const NmsImages<T>& images, const int64_t* order, const int64_t* real, uint64_t* scratch,
               int64_t at_once, Place place) {
    const cudaStream_t stream = enter(place, "nms");
    const int64_t words = ceil_div(images.count, kBlock);
    if (words > 65535) throw std::length_error("nms: more than 4194240 boxes an image on a GPU");
    if (at_once > 65535) at_once = 65535;
    for (int64_t first = 0; first < images.batch; first += at_once) {
        const int64_t batch = images.batch - first < at_once ? images.batch - first : at_once;
        const NmsImages<T> part = images_from(images, first, batch);
        const int64_t* part_order = order + first * images.count;
        const int64_t* part_real = real ? real + first : nullptr;
        if (words > 0) {
            const dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(words), static_cast<unsigned>(batch));
            compare<T><<<grid, kBlock, 0, stream>>>(part, part_order, part_real, limit_of<T>(images.iou_threshold),
                                                    scratch);
            check(cudaGetLastError(), "nms");
        }
        walk<T><<<static_cast<unsigned>(batch), kWalkers, 0, stream>>>(part, part_order, part_real, scratch);
        check(cudaGetLastError(), "nms");
    }
}

template void nms_large<float>(const NmsImages<float>&, const int64_t*, const int64_t*, uint64_t*, int64_t, Place);
template void nms_large<double>(const NmsImages<double>&, const int64_t*, const int64_t*, uint64_t*, int64_t, Place);

}  // namespace cpgr::cuda
