// Products whose operands neither the few-rows kernel nor the library takes: any alignment, any stride.
#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kTile = 32;      // rows of x, rows of w and depth of a block's step
constexpr int kThreads = 256;  // each makes kTile * kTile / kThreads values of one column

// y [T, N] (+)= x w^T of x [T, K] and w [N, K], each with a stride of its rows and one along K.
struct AnyArgs {
  const void *x, *w;
  const float* bias;
  void* y;
  int64_t T, N, K, x_stride, x_stride_k, w_stride, w_stride_k, y_stride;
  bool adds;
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
        xs[r][column] = t0 + r < a.T && k < a.K
                            ? to_f32(static_cast<const X*>(a.x)[(t0 + r) * a.x_stride + k * a.x_stride_k])
                            : 0.0f;
        ws[r][column] = n0 + r < a.N && k < a.K
                            ? to_f32(static_cast<const X*>(a.w)[(n0 + r) * a.w_stride + k * a.w_stride_k])
                            : 0.0f;
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
      if (t >= a.T) continue;
      Y* const to = static_cast<Y*>(a.y) + t * a.y_stride + n;
      *to = from_f32<Y>(sums[j] + (a.adds ? to_f32(*to) : 0.0f) + bias);
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

namespace {

void launch_any(const AnyArgs& a, DType operands, DType result) {
  const Launch how{.grid = dim3(blocks_of(a.N, kTile), std::min(65535u, blocks_of(a.T, kTile))),
                   .block = dim3(kThreads)};
  dispatch(operands, "linear", [&](auto zero) {
    using X = decltype(zero);
    launch(how, result == operands ? linear_any_kernel<X, X> : linear_any_kernel<X, float>, a);
  });
}

}  // namespace

void linear_any(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  launch_any({.x = x.raw(),
              .w = w.raw(),
              .bias = bias.defined() ? bias.data<float>() : nullptr,
              .y = y.raw(),
              .T = x.size(0),
              .N = w.size(0),
              .K = w.size(1),
              .x_stride = x.stride(0),
              .x_stride_k = 1,
              .w_stride = w.stride(0),
              .w_stride_k = 1,
              .y_stride = y.stride(0),
              .adds = false},
             x.dtype(), y.dtype());
}

void any_product(const LibraryProduct& p) {
  const int64_t a_row = p.a.stride(0), b_row = p.b.stride(0);
  launch_any({.x = p.a.raw(),
              .w = p.b.raw(),
              .bias = p.bias.defined() ? p.bias.data<float>() : nullptr,
              .y = p.c.raw(),
              .T = p.c.size(0),
              .N = p.c.size(1),
              .K = p.a_transposed ? p.a.size(0) : p.a.size(1),
              .x_stride = p.a_transposed ? 1 : a_row,
              .x_stride_k = p.a_transposed ? a_row : 1,
              .w_stride = p.b_transposed ? b_row : 1,
              .w_stride_k = p.b_transposed ? 1 : b_row,
              .y_stride = p.c.stride(0),
              .adds = p.adds},
             p.a.dtype(), p.c.dtype());
}

Tensor round_bias(const Tensor& bias, DType compute) {
  const int64_t N = bias.size(0);
  Tensor rounded = Tensor::empty({N}, compute, bias.device());
  dispatch(compute, "linear", [&](auto zero) {
    using Y = decltype(zero);
    launch({.grid = dim3(blocks_of(N, kThreads)), .block = dim3(kThreads)}, round_bias_kernel<Y>,
           bias.data<float>(), reinterpret_cast<Y*>(rounded.raw()), N);
  });
  return rounded;
}

}  // namespace ssm::cuda
