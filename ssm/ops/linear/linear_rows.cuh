// The product of few rows with a matrix, as the decode step's kernels share it: what bounds it is reading the
// weights once.
//
// A warp multiplies a strip of eight rows of W. A lane (g = lane / 4, t = lane % 4) reads 16 bytes of row g
// at a time, so that a step of the warp covers kStep values of K; which of them meet in one matrix
// instruction does not matter as long as x is read the same way. Weights are never written by kernels: the
// first kDepth steps of them are read into registers before grid_dependency_wait().
#pragma once

#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

inline constexpr int kStripRows = 8;  // rows of W
inline constexpr int kDepth = 10;     // steps whose weights a warp holds

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

// Sums of one strip with up to 16 * Tiles rows of x (f32: 8). In 16 bits sums[m] holds, as the matrix
// instruction leaves them, rows 16 m + g and 16 m + g + 8 of x against rows 2t and 2t + 1 of the strip. In
// f32 sums[0..1] are this lane's part of row r of x against row g of the strip, r = 0 .. 7.
template <class X, int Tiles>
struct Strip {
  static constexpr bool kMatrix = sizeof(X) == 2;
  static constexpr int kRows = kMatrix ? 16 * Tiles : 8;
  uint4 weights[kDepth];
  float sums[kMatrix ? Tiles : 2][4] = {};

  // Of `row`, the lane's row of W (null: past the end), steps first + i * stride below K.
  __device__ __forceinline__ void read_weights(const X* row, int first, int stride, int K) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int k = (first + i * stride) * kStep<X> + t * kPack<X>;
      weights[i] = row && k < K ? load_weights(row + k) : uint4{};
    }
  }

  // The same steps of x, rows `x_stride` apart, T of them.
  __device__ __forceinline__ void multiply(const X* x, int64_t x_stride, int T, int first, int stride,
                                           int K) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int k = (first + i * stride) * kStep<X> + t * kPack<X>;
      if (k - t * kPack<X> >= K) break;
      if constexpr (kMatrix) {
#pragma unroll
        for (int m = 0; m < Tiles; ++m) {
          auto row_of = [&](int r) {
            return r < T && k < K ? *reinterpret_cast<const uint4*>(x + r * x_stride + k) : uint4{};
          };
          const uint4 low = row_of(16 * m + g), high = row_of(16 * m + g + 8);
          multiply_add(sums[m], {low.x, high.x, low.y, high.y}, weights[i].x, weights[i].y, X{});
          multiply_add(sums[m], {low.z, high.z, low.w, high.w}, weights[i].z, weights[i].w, X{});
        }
      } else {
        const float* w = reinterpret_cast<const float*>(&weights[i]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= T || k >= K) break;
          float v[kPack<X>];
          load<kPack<X>>(v, x + r * x_stride + k);
#pragma unroll
          for (int j = 0; j < kPack<X>; ++j) sums[r / 4][r % 4] += w[j] * v[j];
        }
      }
    }
  }

  // Hands the sums to shared memory [kRows][kStripRows].
  __device__ __forceinline__ void give(float* to) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    if constexpr (kMatrix) {
#pragma unroll
      for (int m = 0; m < Tiles; ++m) {
        float* at = to + (16 * m + g) * kStripRows + 2 * t;
        *reinterpret_cast<float2*>(at) = {sums[m][0], sums[m][1]};
        *reinterpret_cast<float2*>(at + 8 * kStripRows) = {sums[m][2], sums[m][3]};
      }
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float sum = sums[r / 4][r % 4];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (t == 0) to[r * kStripRows + g] = sum;
      }
    }
  }
};

}  // namespace ssm::cuda
