// The product of few rows with a matrix, as the decode step's kernels share it: what bounds it is reading the
// weights once.
//
// A warp multiplies a strip of eight rows of W by a part of K. A lane (g = lane / 4, t = lane % 4) reads 16
// bytes of row g at a time, so that a step of the warp covers kStep values of K; which of them meet in one
// matrix instruction does not matter as long as x is read the same way. Weights are never written by kernels:
// a warp reads its first Depth steps of them into registers before grid_dependency_wait().
#pragma once

#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

inline constexpr int kStripRows = 8;  // rows of W

template <class X>
inline constexpr int kPack = 16 / sizeof(X);  // values of a lane's load
template <class X>
inline constexpr int kStep = 4 * kPack<X>;  // values of K in a step of a warp

// Read once: past L1.
__device__ __forceinline__ uint4 load_weights(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Sums of one strip with up to Rows rows of x: in 16 bits 8, 16 or 32, in f32 any small number. In 16 bits
// tile m of the sums holds, as the matrix instruction leaves them, rows 16 m + g and 16 m + g + 8 of x
// against rows 2t and 2t + 1 of the strip, in several chains, since an instruction waits long for the one
// before; in f32 value r is this lane's part of row r of x against row g of the strip.
template <class X, int Rows, int Depth>
struct Strip {
  static constexpr bool kMatrix = sizeof(X) == 2;
  static constexpr int kTiles = kMatrix ? (Rows + 15) / 16 : 1;
  static constexpr int kChains = kMatrix ? 4 / kTiles : 1;
  static constexpr int kLoads = kMatrix ? Rows / 8 : Rows;             // of x, a step
  static constexpr int kGroup = kLoads >= Depth ? 1 : Depth / kLoads;  // steps of x read at a time
  static constexpr int kSpan = Depth * kStep<X>;                       // values of K that are held
  static constexpr int kSums = Rows * kStripRows;                      // what give() writes
  uint4 weights[Depth];
  float sums[kChains][kTiles][kMatrix ? 4 : Rows] = {};

  // The strip's row g begins at `row` (null: past the end) and has K values.
  __device__ __forceinline__ void read_weights(const X* row, int K) {
    const int t = threadIdx.x % 4, left = row ? K - t * kPack<X> : 0;
#pragma unroll
    for (int i = 0; i < Depth; ++i) {
      weights[i] = i * kStep<X> < left ? load_weights(row + t * kPack<X> + i * kStep<X>) : uint4{};
    }
  }

  // With the values of x that belong to them; rows are `x_stride` apart, there are T.
  __device__ __forceinline__ void multiply(const X* x, int64_t x_stride, int T, int K) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    const X* from[kLoads];
    int left[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int row = kMatrix ? 8 * j + g : j;
      from[j] = x + row * x_stride + t * kPack<X>;
      left[j] = row < T ? K - t * kPack<X> : 0;
    }
#pragma unroll
    for (int begin = 0; begin < Depth; begin += kGroup) {
      if (begin * kStep<X> >= K) break;
      uint4 loaded[kGroup][kLoads];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          loaded[i][j] = begin + i < Depth && (begin + i) * kStep<X> < left[j]
                             ? *reinterpret_cast<const uint4*>(from[j] + (begin + i) * kStep<X>)
                             : uint4{};
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (begin + i < Depth) multiply_step(begin + i, loaded[i]);
      }
    }
  }

  __device__ __forceinline__ void multiply_step(int step, const uint4 (&x)[kLoads]) {
    const uint4& w = weights[step];
    if constexpr (kMatrix) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const uint4 low = x[2 * m], high = 2 * m + 1 < kLoads ? x[(2 * m + 1) % kLoads] : uint4{};
        multiply_add(sums[2 * step % kChains][m], {low.x, high.x, low.y, high.y}, w.x, w.y, X{});
        multiply_add(sums[(2 * step + 1) % kChains][m], {low.z, high.z, low.w, high.w}, w.z, w.w, X{});
      }
    } else {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        float& sum = sums[0][0][r];
        sum += __uint_as_float(w.x) * __uint_as_float(x[r].x);
        sum += __uint_as_float(w.y) * __uint_as_float(x[r].y);
        sum += __uint_as_float(w.z) * __uint_as_float(x[r].z);
        sum += __uint_as_float(w.w) * __uint_as_float(x[r].w);
      }
    }
  }

  // Reads W and x of a part of K longer than what is held; the held steps have been read.
  __device__ __forceinline__ void multiply_all(const X* row, const X* x, int64_t x_stride, int T, int K) {
    multiply(x, x_stride, T, K);
    for (int k = kSpan; k < K; k += kSpan) {
      read_weights(row ? row + k : nullptr, K - k);
      multiply(x + k, x_stride, T, K - k);
    }
  }

  // Hands the sums to shared memory [Rows][kStripRows].
  __device__ __forceinline__ void give(float* to) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    if constexpr (kMatrix) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int c = 1; c < kChains; ++c) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[0][m][i] += sums[c][m][i];
        }
        float* at = to + (16 * m + g) * kStripRows + 2 * t;
        *reinterpret_cast<float2*>(at) = {sums[0][m][0], sums[0][m][1]};
        if (Rows > 8) *reinterpret_cast<float2*>(at + 8 * kStripRows) = {sums[0][m][2], sums[0][m][3]};
      }
    } else {
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        float sum = sums[0][0][r];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (t == 0) to[r * kStripRows + g] = sum;
      }
    }
  }
};

}  // namespace ssm::cuda
