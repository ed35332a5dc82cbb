#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/launch.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"

namespace ssm::cuda {
namespace {

#ifndef V_DEPTH
#define V_DEPTH 10
#define V_WARPS 16
#define V_REGS 128
#endif
constexpr int kMaxWarps = V_WARPS;
constexpr int kDepth = V_DEPTH;  // steps whose weights a warp holds

struct RowsArgs {
  const void *x, *w;
  const float* bias;  // or null
  void* y;
  bool y_is_f32;
  int64_t N, x_stride, w_stride, y_stride;
  int T, K, part;  // values of K of a warp
};

// Blocks of (32, parts of K, strips) threads: the warps of a strip share K out, and their sums are added in
// one order.
template <class X, int Rows>
__global__ void __maxnreg__(V_REGS) linear_rows_kernel(const RowsArgs a) {
  using Sums = Strip<X, Rows, kDepth>;
  extern __shared__ float shared[];
  const int parts = blockDim.y, part = threadIdx.y, strip = threadIdx.z;
  float* given = shared + strip * parts * Sums::kSums;
  const int64_t n0 = (int64_t{blockIdx.x} * blockDim.z + strip) * kStripRows;
  const int64_t row = n0 + threadIdx.x / 4;
  const int begin = part * a.part, K = min(a.K - begin, a.part);
  const X* w = row < a.N ? static_cast<const X*>(a.w) + row * a.w_stride + begin : nullptr;
  Sums sums;
  sums.read_weights(w, K);
  let_next_start();
  const int i0 = part * 32 + threadIdx.x;  // of the strip's results, the thread's first
  float bias = a.bias && n0 + i0 % kStripRows < a.N ? a.bias[n0 + i0 % kStripRows] : 0.0f;
  grid_dependency_wait();
  sums.multiply_all(w, static_cast<const X*>(a.x) + begin, a.x_stride, a.T, K);
  sums.give(given + part * Sums::kSums);
  __syncthreads();
  for (int i = i0; i < a.T * kStripRows; i += parts * 32) {
    const int64_t n = n0 + i % kStripRows, at = i / kStripRows * a.y_stride + n;
    if (n >= a.N) continue;
    float sum = bias;
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum += given[p * Sums::kSums + i];
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

template <class X, int Rows>
void launch_rows(RowsArgs a) {
  const int steps = (a.K + kStep<X> - 1) / kStep<X>;
  int parts = 1;
  while (parts < kMaxWarps && parts * kDepth < steps) parts *= 2;
  a.part = (steps + parts - 1) / parts * kStep<X>;
  const int strips = std::max(1, 4 / parts);
  const int64_t rows = int64_t{strips} * kStripRows;
  launch({.grid = dim3(static_cast<unsigned>((a.N + rows - 1) / rows)),
          .block = dim3(32, static_cast<unsigned>(parts), static_cast<unsigned>(strips)),
          .shared_bytes = sizeof(float) * Rows * kStripRows * static_cast<size_t>(parts * strips),
          .overlaps_previous = true},
         linear_rows_kernel<X, Rows>, a);
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
                   .K = static_cast<int>(w.size(1)),
                   .part = 0};
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    if constexpr (sizeof(X) == 2) {
      T > 16 ? launch_rows<X, 32>(a) : T > 8 ? launch_rows<X, 16>(a) : launch_rows<X, 8>(a);
    } else {
      T > 1 ? launch_rows<X, 8>(a) : launch_rows<X, 1>(a);
    }
  });
  return true;
}

}  // namespace ssm::cuda
