// Sums over rows, in an order that the shape alone gives: what the gradients of biases and norm weights end
// with.
#pragma once

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/core/tensor.h"
#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

inline constexpr int kSumLanes = 32;  // columns of a block, and rows that are summed side by side

// to[n] (+)= the sum of rows [first, end) of x [., N]; block x is for kSumLanes columns, block y for a run of
// `run` rows, whose sum goes to row y of `to` unless it is added to its only row.
template <class X>
__global__ void __launch_bounds__(kSumLanes* kSumLanes)
    column_sums_kernel(const X* x, int64_t stride, int64_t rows, int64_t run, int64_t N, float* to,
                       bool adds) {
  __shared__ float sums[kSumLanes][kSumLanes + 1];
  let_next_start();
  grid_dependency_wait();
  const int64_t n = int64_t{blockIdx.x} * kSumLanes + threadIdx.x;
  const int64_t first = blockIdx.y * run, end = min(rows, first + run);
  float sum = 0;
  if (n < N) {
    int64_t row = first + threadIdx.y;
    for (; row + 3 * kSumLanes < end; row += 4 * kSumLanes) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = to_f32(x[(row + i * kSumLanes) * stride + n]);
      sum += (v[0] + v[1]) + (v[2] + v[3]);
    }
    for (; row < end; row += kSumLanes) sum += to_f32(x[row * stride + n]);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = sums[threadIdx.x][threadIdx.y];
#pragma unroll
  for (int offset = kSumLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  const int64_t column = int64_t{blockIdx.x} * kSumLanes + threadIdx.y;
  if (threadIdx.x == 0 && column < N) {
    float* const at = to + blockIdx.y * N + column;
    *at = adds ? *at + sum : sum;
  }
}

// to [N] += the sum of the rows of x [rows, N].
template <class X>
void add_column_sums(const X* x, int64_t stride, int64_t rows, int64_t N, float* to) {
  if (rows == 0 || N == 0) return;
  constexpr int64_t kRun = 1024;
  const int64_t runs = (rows + kRun - 1) / kRun;
  const auto columns = static_cast<unsigned>((N + kSumLanes - 1) / kSumLanes);
  const dim3 block(kSumLanes, kSumLanes);
  if (runs == 1) {
    launch({.grid = dim3(columns), .block = block, .overlaps_previous = true}, column_sums_kernel<X>, x,
           stride, rows, rows, N, to, true);
    return;
  }
  const Tensor parts = Tensor::empty({runs, N}, DType::f32, kCuda);
  launch({.grid = dim3(columns, static_cast<unsigned>(runs)), .block = block, .overlaps_previous = true},
         column_sums_kernel<X>, x, stride, rows, kRun, N, parts.data<float>(), false);
  add_column_sums<float>(parts.data<float>(), N, runs, N, to);
}

}  // namespace ssm::cuda
