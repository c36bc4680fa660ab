// float: one pass over all pairs for both sides. A best so far is a 64-bit key, the bits of the IoU (never negative, so
// they sort as it does) above those of ~index, and the largest key wins: the largest IoU, of equal ones the lowest
// index, in whatever order threads come. double does not fit into such a key: one pass a side, a warp a box.
#include "box_match.h"

#include "box_access.h"

namespace cpgr::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRows = 4;      // boxes of the first side a thread
constexpr int kColumns = 64;  // boxes of the second side a block of threads, in shared memory

__device__ __forceinline__ uint64_t to_key(float iou, int64_t index) {
    return static_cast<uint64_t>(__float_as_uint(iou)) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(index));
}

__device__ __forceinline__ void raise(uint64_t* key, uint64_t candidate) {
    atomicMax(reinterpret_cast<unsigned long long*>(key), static_cast<unsigned long long>(candidate));
}

// Keys of all boxes that overlap another; those of others stay 0. Most pairs are apart, which takes four minima and
// maxima and two differences to see, so the rest of the arithmetic waits behind a branch.
__global__ void __launch_bounds__(kThreads)
    match_tiles(const float* __restrict__ boxes1, const float* __restrict__ boxes2, int64_t batch, int64_t rows,
                int64_t count, uint64_t* __restrict__ keys1, uint64_t* __restrict__ keys2) {
    __shared__ Box<float> others[kColumns];
    __shared__ float other_areas[kColumns];
    __shared__ uint64_t other_keys[kColumns];
    const int64_t tiles = (rows + kRows * kThreads - 1) / (kRows * kThreads);
    const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kColumns;
    const int size = static_cast<int>(count - first_column < kColumns ? count - first_column : kColumns);

    for (int64_t tile = blockIdx.y; tile < batch * tiles; tile += gridDim.y) {
        const int64_t image = tile / tiles, first = tile % tiles * (kRows * kThreads) + threadIdx.x;
        if (static_cast<int>(threadIdx.x) < size) {
            const Box<float> other = box_at(boxes2, image * count + first_column + threadIdx.x);
            others[threadIdx.x] = other;
            other_areas[threadIdx.x] = area_of(other);
            other_keys[threadIdx.x] = 0;
        }
        Box<float> box[kRows];
        float best[kRows];
        int partner[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
            const int64_t row = first + k * kThreads;
            // A box that is not there lies apart from all.
            box[k] = row < rows ? box_at(boxes1, image * rows + row) : Box<float>{0.0f, 0.0f, -1e38f, -1e38f};
            best[k] = 0.0f;
            partner[k] = 0;
        }
        __syncthreads();

        for (int j = 0; j < size; ++j) {
            const Box<float> other = others[j];
            float width[kRows], height[kRows];
            int apart = -1;  // its sign bit stays set while every pair of these is
#pragma unroll
            for (int k = 0; k < kRows; ++k) {
                width[k] = smaller(box[k].x2, other.x2) - larger(box[k].x1, other.x1);
                height[k] = smaller(box[k].y2, other.y2) - larger(box[k].y1, other.y1);
                apart &= __float_as_int(width[k]) | __float_as_int(height[k]);
            }
            if (apart < 0) continue;
            const float other_area = other_areas[j];
#pragma unroll
            for (int k = 0; k < kRows; ++k) {
                if (!(width[k] > 0.0f && height[k] > 0.0f)) continue;
                const float inter = width[k] * height[k];
                const float iou = inter / (area_of(box[k]) + other_area - inter);
                if (iou > best[k]) {
                    best[k] = iou;
                    partner[k] = j;
                }
                const uint64_t key = to_key(iou, first + k * kThreads);
                if (iou > 0.0f && key > other_keys[j]) raise(&other_keys[j], key);
            }
        }

#pragma unroll
        for (int k = 0; k < kRows; ++k)
            if (best[k] > 0.0f)
                raise(&keys1[image * rows + first + k * kThreads], to_key(best[k], first_column + partner[k]));
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < size && other_keys[threadIdx.x])
            raise(&keys2[image * count + first_column + threadIdx.x], other_keys[threadIdx.x]);
        __syncthreads();
    }
}

// The index of the first IoU with `others` that is a number, or -1; all lanes of a warp together.
template <class T>
__device__ int64_t first_number(const Box<T>& box, const T* __restrict__ others, int64_t count, int lane) {
    const T area = area_of(box);
    for (int64_t j = 0; j < count && !isnan(area); j += kWarp) {
        bool number = false;
        if (j + lane < count) {
            const Box<T> other = box_at(others, j + lane);
            number = !isnan(iou_of(box, area, other, area_of(other)));
        }
        const unsigned found = __ballot_sync(kAllLanes, number);
        if (found) return j + __ffs(found) - 1;
    }
    return -1;
}

// Keys to IoUs and indices, a warp a box.
__global__ void settle(const float* __restrict__ boxes, const float* __restrict__ others, int64_t batch, int64_t rows,
                       int64_t count, const uint64_t* __restrict__ keys, float* __restrict__ ious,
                       int64_t* __restrict__ indices) {
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    const int64_t start = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    for (int64_t row = start; row < batch * rows; row += warps) {
        const uint64_t key = keys[row];
        int64_t index = ~static_cast<uint32_t>(key);
        if (key == 0) index = first_number(box_at(boxes, row), others + row / rows * count * 4, count, lane);
        if (lane == 0) {
            ious[row] = __uint_as_float(static_cast<uint32_t>(key >> 32));
            indices[row] = index;
        }
    }
}

__global__ void best_partners(const double* __restrict__ boxes, const double* __restrict__ others, int64_t batch,
                              int64_t rows, int64_t count, double* __restrict__ ious, int64_t* __restrict__ indices) {
    const int lane = threadIdx.x % kWarp;
    const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
    const int64_t start = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
    for (int64_t row = start; row < batch * rows; row += warps) {
        const Box<double> box = box_at(boxes, row);
        const double area = area_of(box);
        const double* partners = others + row / rows * count * 4;
        double best = -1.0;  // below every IoU
        int64_t index = -1;
        for (int64_t j = lane; j < count; j += kWarp) {
            const Box<double> other = box_at(partners, j);
            const double iou = iou_of(box, area, other, area_of(other));
            if (iou > best) {
                best = iou;
                index = j;
            }
        }
        for (int offset = kWarp / 2; offset > 0; offset /= 2) {
            const double theirs = __shfl_down_sync(kAllLanes, best, offset);
            const int64_t place = __shfl_down_sync(kAllLanes, index, offset);
            if (theirs > best || (theirs == best && place < index)) {
                best = theirs;
                index = place;
            }
        }
        if (lane == 0) {
            ious[row] = index < 0 ? 0.0 : best;
            indices[row] = index;
        }
    }
}

unsigned warp_grid(int64_t boxes) { return grid_size(ceil_div(boxes, kThreads / kWarp)); }

}  // namespace

void box_match(const float* boxes1, const float* boxes2, int64_t batch, int64_t rows, int64_t count, uint64_t* keys,
               float* iou1, int64_t* index1, float* iou2, int64_t* index2, Place place) {
    // The longer side goes to the threads, the shorter to shared memory; the arithmetic is the same bit for bit.
    if (rows < count) return box_match(boxes2, boxes1, batch, count, rows, keys, iou2, index2, iou1, index1, place);
    if (batch * rows == 0) return;
    if (rows > 0xffffffffll) throw std::length_error("box_match: more than 2^32 - 1 boxes a side on a GPU");
    const cudaStream_t stream = enter(place, "box_match");
    uint64_t* keys2 = keys + batch * rows;
    check(cudaMemsetAsync(keys, 0, batch * (rows + count) * sizeof(uint64_t), stream), "box_match");
    if (count > 0) {
        const dim3 grid(static_cast<unsigned>(ceil_div(count, kColumns)),
                        grid_size(batch * ceil_div(rows, kRows * kThreads)));
        match_tiles<<<grid, kThreads, 0, stream>>>(boxes1, boxes2, batch, rows, count, keys, keys2);
        check(cudaGetLastError(), "box_match");
        settle<<<warp_grid(batch * count), kThreads, 0, stream>>>(boxes2, boxes1, batch, count, rows, keys2, iou2,
                                                                  index2);
        check(cudaGetLastError(), "box_match");
    }
    settle<<<warp_grid(batch * rows), kThreads, 0, stream>>>(boxes1, boxes2, batch, rows, count, keys, iou1, index1);
    check(cudaGetLastError(), "box_match");
}

void box_match(const double* boxes1, const double* boxes2, int64_t batch, int64_t rows, int64_t count, double* iou1,
               int64_t* index1, double* iou2, int64_t* index2, Place place) {
    const cudaStream_t stream = enter(place, "box_match");
    const auto launch = [&](const double* boxes, const double* others, int64_t own, int64_t partners, double* ious,
                            int64_t* indices) {
        if (batch * own == 0) return;
        best_partners<<<warp_grid(batch * own), kThreads, 0, stream>>>(boxes, others, batch, own, partners, ious,
                                                                       indices);
        check(cudaGetLastError(), "box_match");
    };
    launch(boxes1, boxes2, rows, count, iou1, index1);
    launch(boxes2, boxes1, count, rows, iou2, index2);
}

}  // namespace cpgr::cuda
