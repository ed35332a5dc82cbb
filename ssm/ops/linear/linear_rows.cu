#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/launch.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"

namespace ssm::cuda {
namespace {

constexpr int kMaxWarps = 16;

struct RowsArgs {
  const void *x, *w;
  const float* bias;  // or null
  void* y;
  bool y_is_f32;
  int64_t N, x_stride, w_stride, y_stride;
  int T, K;
};

// Blocks of (32, parts of K, strips) threads: the warps of a strip share its K out by steps and their sums
// are added in one order.
template <class X, int Tiles>
__global__ void __launch_bounds__(kMaxWarps * 32) linear_rows_kernel(const RowsArgs a) {
  using Sums = Strip<X, Tiles>;
  __shared__ float parts[kMaxWarps][Sums::kRows * kStripRows];
  const int warps = blockDim.y, part = threadIdx.y, strip = threadIdx.z;
  const int64_t n0 = (int64_t{blockIdx.x} * blockDim.z + strip) * kStripRows;
  const int64_t row = n0 + threadIdx.x / 4;
  const X* w = row < a.N ? static_cast<const X*>(a.w) + row * a.w_stride : nullptr;
  const X* x = static_cast<const X*>(a.x);
  Sums sums;
  sums.read_weights(w, part, warps, a.K);
  let_next_start();
  grid_dependency_wait();
  sums.multiply(x, a.x_stride, a.T, part, warps, a.K);
  for (int first = part + kDepth * warps; first * kStep<X> < a.K; first += kDepth * warps) {
    sums.read_weights(w, first, warps, a.K);
    sums.multiply(x, a.x_stride, a.T, first, warps, a.K);
  }
  sums.give(parts[strip * warps + part]);
  __syncthreads();
  for (int i = part * 32 + threadIdx.x; i < a.T * kStripRows; i += warps * 32) {
    const int64_t n = n0 + i % kStripRows;
    if (n >= a.N) continue;
    float sum = a.bias ? a.bias[n] : 0.0f;
    for (int p = 0; p < warps; ++p) sum += parts[strip * warps + p][i];
    const int64_t at = i / kStripRows * a.y_stride + n;
    if (a.y_is_f32) {
      static_cast<float*>(a.y)[at] = sum;
    } else {
      static_cast<X*>(a.y)[at] = from_f32<X>(sum);
    }
  }
}

bool in_packs(const Tensor& t) {
  const int64_t bytes = static_cast<int64_t>(size_of(t.dtype()));
  return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.size(1) * bytes % 16 == 0 &&
         (t.size(0) <= 1 || t.stride(0) * bytes % 16 == 0);
}

template <class X, int Tiles>
void launch_rows(const RowsArgs& a) {
  const int steps = (a.K + kStep<X> - 1) / kStep<X>;
  int warps = 1;
  while (warps < kMaxWarps && warps * kDepth < steps) warps *= 2;
  const int strips = std::max(1, 4 / warps);
  const int64_t rows = int64_t{strips} * kStripRows;
  launch({.grid = dim3(static_cast<unsigned>((a.N + rows - 1) / rows)),
          .block = dim3(32, static_cast<unsigned>(warps), static_cast<unsigned>(strips)),
          .overlaps_previous = true},
         linear_rows_kernel<X, Tiles>, a);
}

}  // namespace

bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const int64_t T = x.size(0), most = x.dtype() == DType::f32 ? 8 : 32;
  if (T > most || !in_packs(x) || !in_packs(w) || w.size(1) > (1 << 30)) return false;
  const RowsArgs a{.x = x.raw(),
                   .w = w.raw(),
                   .bias = bias.defined() ? bias.data<float>() : nullptr,
                   .y = y.raw(),
                   .y_is_f32 = y.dtype() == DType::f32,
                   .N = w.size(0),
                   .x_stride = x.stride(0),
                   .w_stride = w.stride(0),
                   .y_stride = y.stride(0),
                   .T = static_cast<int>(T),
                   .K = static_cast<int>(w.size(1))};
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    if constexpr (sizeof(X) == 2) {
      if (T > 16) return launch_rows<X, 2>(a);
    }
    launch_rows<X, 1>(a);
  });
  return true;
}

}  // namespace ssm::cuda
