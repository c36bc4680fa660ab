// The pixels that masks share, by the tensor cores' AND-and-count of bits: with the ordinary population count, a
// quarter of the rate of an addition, 256 x 256 masks would take several times as long as reading them.
//
// A block of threads computes a square of the matrix. Its warps share the tiles of the masks among them, each warp
// loads them from memory straight into the registers that the matrix instruction wants, and the warps' sums meet in
// shared memory: nothing else is kept.
#include "mask_iou.h"

namespace cpgr::cuda {
namespace {

constexpr int kWarp = 32, kWarps = 16, kThreads = kWarp * kWarps;
constexpr int kRows = 16, kColumns = 8;  // of the result of one matrix instruction

__device__ __forceinline__ double iou_of(int64_t inter, int64_t area_a, int64_t area_b, bool crowd) {
    if (inter == 0) return 0;
    return static_cast<double>(inter) / static_cast<double>(crowd ? area_a : area_a + area_b - inter);
}

// sums[16 x 8] += bits that rows of a [16 x 256] and columns of b [256 x 8] share. With g = lane / 4 and t = lane % 4,
// a[0], a[2] are of row g and a[1], a[3] of row g + 8, b[0], b[1] of column g; each lane of the four holds an own part
// of the 256 bits, which part is of no matter as long as a and b agree. sums[0], sums[1] are of row g, columns 2 t and
// 2 t + 1, sums[2], sums[3] of row g + 8.
__device__ __forceinline__ void count_shared(int (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                             uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A lane's quarter of a tile; zeros past the last mask.
__device__ __forceinline__ uint4 quarter_of(const uint4* bits, int64_t mask, int64_t count, int64_t tiles,
                                            int64_t tile, int quarter) {
    return mask < count ? __ldg(bits + (mask * tiles + tile) * 4 + quarter) : make_uint4(0, 0, 0, 0);
}

// Side: rows and columns of the matrix that a block computes.
template <int Side>
__global__ void __launch_bounds__(kThreads)
    iou_squares(PackedMasks a, PackedMasks b, int64_t tiles, const uint8_t* __restrict__ crowd,
                double* __restrict__ out) {
    constexpr int Down = Side / kRows, Across = Side / kColumns;
    __shared__ unsigned long long shared[Side][Side];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, group = lane / 4, quarter = lane % 4;
    const auto* bits_a = reinterpret_cast<const uint4*>(a.bits);
    const auto* bits_b = reinterpret_cast<const uint4*>(b.bits);
    const int64_t column = static_cast<int64_t>(blockIdx.x) * Side;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * Side; row < a.count; row += int64_t{gridDim.y} * Side) {
        for (int k = threadIdx.x; k < Side * Side; k += kThreads) shared[k / Side][k % Side] = 0;
        __syncthreads();

        // 32 bits are enough: a warp sees a sixteenth of a mask.
        int sums[Down][Across][4] = {};
        for (int64_t tile = warp; tile < tiles; tile += kWarps) {
            uint4 of_a[Down][2], of_b[Across];
#pragma unroll
            for (int i = 0; i < Down; ++i) {
                of_a[i][0] = quarter_of(bits_a, row + i * kRows + group, a.count, tiles, tile, quarter);
                of_a[i][1] = quarter_of(bits_a, row + i * kRows + 8 + group, a.count, tiles, tile, quarter);
            }
#pragma unroll
            for (int j = 0; j < Across; ++j)
                of_b[j] = quarter_of(bits_b, column + j * kColumns + group, b.count, tiles, tile, quarter);
#pragma unroll
            for (int i = 0; i < Down; ++i) {
                const uint4 upper = of_a[i][0], lower = of_a[i][1];
#pragma unroll
                for (int j = 0; j < Across; ++j) {
                    count_shared(sums[i][j], upper.x, lower.x, upper.y, lower.y, of_b[j].x, of_b[j].y);
                    count_shared(sums[i][j], upper.z, lower.z, upper.w, lower.w, of_b[j].z, of_b[j].w);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < Down; ++i)
#pragma unroll
            for (int j = 0; j < Across; ++j)
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    if (sums[i][j][k])
                        atomicAdd(&shared[i * kRows + k / 2 * 8 + group][j * kColumns + quarter * 2 + k % 2],
                                  static_cast<unsigned long long>(sums[i][j][k]));
        __syncthreads();

        for (int k = threadIdx.x; k < Side * Side; k += kThreads) {
            const int64_t i = row + k / Side, j = column + k % Side;
            if (i < a.count && j < b.count)
                out[i * b.count + j] = iou_of(static_cast<int64_t>(shared[k / Side][k % Side]), a.areas[i],
                                              b.areas[j], crowd && crowd[j]);
        }
        __syncthreads();
    }
}

// One block of threads a pair.
__global__ void __launch_bounds__(kThreads)
    iou_each(PackedMasks a, PackedMasks b, int64_t words, const uint8_t* __restrict__ crowd,
             double* __restrict__ out) {
    __shared__ unsigned long long shared;
    for (int64_t pair = blockIdx.x; pair < a.count; pair += gridDim.x) {
        if (threadIdx.x == 0) shared = 0;
        __syncthreads();
        unsigned sum = 0;
        for (int64_t word = threadIdx.x; word < words; word += kThreads)
            sum += __popcll(a.bits[pair * words + word] & b.bits[pair * words + word]);
        sum = __reduce_add_sync(0xffffffffu, sum);
        if (threadIdx.x % kWarp == 0) atomicAdd(&shared, static_cast<unsigned long long>(sum));
        __syncthreads();
        if (threadIdx.x == 0)
            out[pair] = iou_of(static_cast<int64_t>(shared), a.areas[pair], b.areas[pair], crowd && crowd[pair]);
        __syncthreads();
    }
}

template <int Side>
void launch(const PackedMasks& a, const PackedMasks& b, int64_t tiles, const uint8_t* crowd, double* out,
            cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(b.count, Side)), grid_size(ceil_div(a.count, Side)));
    iou_squares<Side><<<grid, kThreads, 0, stream>>>(a, b, tiles, crowd, out);
}

}  // namespace

void mask_iou(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
              double* out, Place place) {
    if (a.count == 0 || b.count == 0) return;
    const cudaStream_t stream = enter(place, "mask_iou");
    const PackedGrid grid = PackedGrid::of(height, width);
    const int64_t tiles = grid.rows * grid.columns;
    // Large squares read the masks less often, small ones keep all of the GPU busy (about 128 blocks).
    if (ceil_div(a.count, 32) * ceil_div(b.count, 32) >= 128) {
        launch<32>(a, b, tiles, crowd, out, stream);
    } else {
        launch<16>(a, b, tiles, crowd, out, stream);
    }
    check(cudaGetLastError(), "mask_iou");
}

void mask_iou_pairs(const PackedMasks& a, const PackedMasks& b, int64_t height, int64_t width, const uint8_t* crowd,
                    double* out, Place place) {
    if (a.count == 0) return;
    const cudaStream_t stream = enter(place, "mask_iou");
    const int64_t words = PackedGrid::of(height, width).words();
    iou_each<<<grid_size(a.count), kThreads, 0, stream>>>(a, b, words, crowd, out);
    check(cudaGetLastError(), "mask_iou");
}

}  // namespace cpgr::cuda
