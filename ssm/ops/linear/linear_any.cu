// linear for operands that neither the few-rows kernel nor the library takes: any alignment, any stride.
#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kTile = 32;      // rows of x, rows of w and depth of a block's step
constexpr int kThreads = 256;  // each makes kTile * kTile / kThreads values of one column

struct AnyArgs {
  const void *x, *w;
  const float* bias;
  void* y;
  int64_t T, N, K, x_stride, w_stride, y_stride;
};

template <class X, class Y>
__global__ void __launch_bounds__(kThreads) linear_any_kernel(const AnyArgs a) {
  __shared__ float xs[kTile][kTile + 1], ws[kTile][kTile + 1];
  constexpr int kRows = kThreads / kTile;
  const int column = threadIdx.x % kTile, row = threadIdx.x / kTile;
  const int64_t n0 = int64_t{blockIdx.x} * kTile;
  for (int64_t t0 = int64_t{blockIdx.y} * kTile; t0 < a.T; t0 += int64_t{gridDim.y} * kTile) {
    float sums[kTile / kRows] = {};
    for (int64_t k0 = 0; k0 < a.K; k0 += kTile) {
      const int64_t k = k0 + column;
      for (int r = row; r < kTile; r += kRows) {
        xs[r][column] =
            t0 + r < a.T && k < a.K ? to_f32(static_cast<const X*>(a.x)[(t0 + r) * a.x_stride + k]) : 0.0f;
        ws[r][column] =
            n0 + r < a.N && k < a.K ? to_f32(static_cast<const X*>(a.w)[(n0 + r) * a.w_stride + k]) : 0.0f;
      }
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kTile; ++i) {
#pragma unroll
        for (int j = 0; j < kTile / kRows; ++j) sums[j] += xs[row + j * kRows][i] * ws[column][i];
      }
      __syncthreads();
    }
    const int64_t n = n0 + column;
    if (n >= a.N) continue;
    const float bias = a.bias ? a.bias[n] : 0.0f;
#pragma unroll
    for (int j = 0; j < kTile / kRows; ++j) {
      const int64_t t = t0 + row + j * kRows;
      if (t < a.T) static_cast<Y*>(a.y)[t * a.y_stride + n] = from_f32<Y>(sums[j] + bias);
    }
  }
}

template <class Y>
__global__ void __launch_bounds__(kThreads) round_bias_kernel(const float* bias, Y* rounded, int64_t N) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n < N) rounded[n] = from_f32<Y>(bias[n]);
}

unsigned blocks_of(int64_t n, int64_t part) { return static_cast<unsigned>((n + part - 1) / part); }

}  // namespace

void linear_any(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const AnyArgs a{.x = x.raw(),
                  .w = w.raw(),
                  .bias = bias.defined() ? bias.data<float>() : nullptr,
                  .y = y.raw(),
                  .T = x.size(0),
                  .N = w.size(0),
                  .K = w.size(1),
                  .x_stride = x.stride(0),
                  .w_stride = w.stride(0),
                  .y_stride = y.stride(0)};
  const Launch how{.grid = dim3(blocks_of(a.N, kTile), std::min(65535u, blocks_of(a.T, kTile))),
                   .block = dim3(kThreads)};
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch(how, y.dtype() == x.dtype() ? linear_any_kernel<X, X> : linear_any_kernel<X, float>, a);
  });
}

void round_bias(const Tensor& bias, const Tensor& rounded) {
  const int64_t N = bias.size(0);
  dispatch(rounded.dtype(), "linear", [&](auto zero) {
    using Y = decltype(zero);
    launch({.grid = dim3(blocks_of(N, kThreads)), .block = dim3(kThreads)}, round_bias_kernel<Y>,
           bias.data<float>(), reinterpret_cast<Y*>(rounded.raw()), N);
  });
}

}  // namespace ssm::cuda
