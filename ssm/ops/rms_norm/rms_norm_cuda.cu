#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kKept = 8;  // packs of a row that a thread holds in registers: rows up to 8192 are read once

struct RmsNormArgs {
  const void* x;
  const void* z;    // gate, or null
  float* residual;  // or null
  const float* weight;
  void* y;
  int64_t x_stride, z_stride, residual_stride, y_stride;
  int64_t width;  // of a group
  float eps;
};

// The values that are normed, columns [i, i + V) of a group: x * silu(z), or residual + x, which is written
// back where `update` says so.
template <int V, class X>
__device__ __forceinline__ void read_values(const RmsNormArgs& a, int64_t row, int64_t column, bool add,
                                            float (&value)[V]) {
  load<V>(value, static_cast<const X*>(a.x) + row * a.x_stride + column);
  if (a.z) {
    float z[V];
    load<V>(z, static_cast<const X*>(a.z) + row * a.z_stride + column);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] *= silu(z[i]);
  }
  if (a.residual) {
    float r[V];
    load<V>(r, a.residual + row * a.residual_stride + column);
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = add ? value[i] + r[i] : r[i];
  }
}

// One block a row and group. What registers keep is loaded before anything is stored, so that the loads are
// in flight together; values beyond it are read again.
template <int V, class X, class Y>
__global__ void __launch_bounds__(kThreads) rms_norm_forward_kernel(const RmsNormArgs a) {
  __shared__ float scratch[32];
  let_next_start();
  grid_dependency_wait();
  constexpr int64_t kStep = int64_t{kThreads} * V;
  const int64_t row = blockIdx.x, first = blockIdx.y * a.width, start = int64_t{threadIdx.x} * V;
  float kept[kKept][V];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = k * kStep + start;
    if (i < a.width) read_values<V, X>(a, row, first + i, true, kept[k]);
  }
  float square = 0;
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = k * kStep + start;
    if (i < a.width) {
      if (a.residual) store<V>(a.residual + row * a.residual_stride + first + i, kept[k]);
#pragma unroll
      for (int j = 0; j < V; ++j) square += kept[k][j] * kept[k][j];
    }
  }
  for (int64_t i = kKept * kStep + start; i < a.width; i += kStep) {
    float value[V];
    read_values<V, X>(a, row, first + i, true, value);
    if (a.residual) store<V>(a.residual + row * a.residual_stride + first + i, value);
#pragma unroll
    for (int j = 0; j < V; ++j) square += value[j] * value[j];
  }
  const float scale = rsqrtf(block_sum(square, scratch) / static_cast<float>(a.width) + a.eps);
  auto write = [&](int64_t i, float(&value)[V]) {
    float w[V];
    if (a.weight) load<V>(w, a.weight + first + i);
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= a.weight ? scale * w[j] : scale;
    store<V>(static_cast<Y*>(a.y) + row * a.y_stride + first + i, value);
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int64_t i = k * kStep + start;
    if (i < a.width) write(i, kept[k]);
  }
  for (int64_t i = kKept * kStep + start; i < a.width; i += kStep) {
    float value[V];
    read_values<V, X>(a, row, first + i, false, value);
    write(i, value);
  }
}

bool is_multiple(int64_t a, int64_t b) { return a % b == 0; }
bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

void launch_rms_norm(std::string_view op, const RmsNormArgs& a, int64_t rows, int64_t groups, DType x_dtype,
                     DType y_dtype) {
  if (rows == 0) return;
  constexpr int V = 4;
  const bool vectors = is_multiple(a.width, V) && is_multiple(a.x_stride, V) && is_multiple(a.z_stride, V) &&
                       is_multiple(a.residual_stride, V) && is_multiple(a.y_stride, V) && is_aligned(a.x) &&
                       is_aligned(a.z) && is_aligned(a.residual) && is_aligned(a.weight) && is_aligned(a.y);
  const Launch how{.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(groups)),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  dispatch(x_dtype, op, [&](auto x_zero) {
    dispatch(y_dtype, op, [&](auto y_zero) {
      using X = decltype(x_zero);
      using Y = decltype(y_zero);
      launch(how, vectors ? rms_norm_forward_kernel<V, X, Y> : rms_norm_forward_kernel<1, X, Y>, a);
    });
  });
}

RmsNormArgs args_of(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  return {.x = x.raw(),
          .z = nullptr,
          .residual = nullptr,
          .weight = weight.defined() ? weight.data<float>() : nullptr,
          .y = y.raw(),
          .x_stride = x.stride(0),
          .z_stride = 0,
          .residual_stride = 0,
          .y_stride = y.stride(0),
          .width = x.size(1),
          .eps = eps};
}

}  // namespace

void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  launch_rms_norm("rms_norm", args_of(x, weight, eps, y), x.size(0), 1, x.dtype(), y.dtype());
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps, const Tensor& y) {
  RmsNormArgs a = args_of(x, weight, eps, y);
  a.residual = residual.data<float>();
  a.residual_stride = residual.stride(0);
  launch_rms_norm("add_rms_norm", a, x.size(0), 1, x.dtype(), y.dtype());
}

void gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps,
                    const Tensor& y) {
  RmsNormArgs a = args_of(x, weight, eps, y);
  a.z = z.raw();
  a.z_stride = z.stride(0);
  a.width = x.size(1) / groups;
  launch_rms_norm("gated_rms_norm", a, x.size(0), groups, x.dtype(), y.dtype());
}

}  // namespace ssm::cuda
