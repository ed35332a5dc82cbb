#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kMostThreads = 512;
// Packs of a row that a thread holds in registers: rows up to 8192 are read once.
template <int V>
inline constexpr int kKept = V == 1 ? 16 : 4;

struct RmsNormArgs {
  const void* x;
  const void* z;        // gate, or null
  const float* before;  // the residual that x is added to, or null
  float* residual;      // the sum; it may be the same memory
  const float* weight;
  void* y;
  int64_t x_stride, z_stride, before_stride, residual_stride, y_stride;
  int64_t width;  // of a group
  float eps;
};

// What is normed, V columns of a group: x * silu(z), or residual + x, or the residual alone, updated before.
// Reading is apart from computing, so that loads are in flight together.
template <int V, class X>
struct Values {
  static constexpr bool kMayAdd = V < 8;  // packs of eight are for what has no f32 residual
  Wide<X, V> x, z;
  Wide<float, V> residual;
  __device__ __forceinline__ void read(const RmsNormArgs& a, bool updated, int64_t row, int64_t column) {
    x = load_wide<V>(static_cast<const X*>(a.x) + row * a.x_stride + column);
    if (a.z) z = load_wide<V>(static_cast<const X*>(a.z) + row * a.z_stride + column);
    if (!kMayAdd || !a.residual) return;
    residual = load_wide<V>(updated ? a.residual + row * a.residual_stride + column
                                    : a.before + row * a.before_stride + column);
  }
  __device__ __forceinline__ void compute(const RmsNormArgs& a, bool updated, float (&to)[V]) const {
    widen<V>(to, x);
    if (a.z) {
      float gate[V];
      widen<V>(gate, z);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] *= silu(gate[i]);
    }
    if (kMayAdd && a.residual) {
      float r[V];
      widen<V>(r, residual);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = updated ? r[i] : to[i] + r[i];
    }
  }
};

// One block a row and group. Values beyond what registers keep are read again.
template <int V, class X, class Y>
__global__ void __launch_bounds__(kMostThreads) rms_norm_forward_kernel(const RmsNormArgs a) {
  __shared__ float scratch[32];
  constexpr int kPacks = kKept<V>;
  const int64_t step = int64_t{blockDim.x} * V;
  const int64_t row = blockIdx.x, first = blockIdx.y * a.width, start = int64_t{threadIdx.x} * V;
  grid_dependency_wait();
  Values<V, X> raw[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) raw[k].read(a, false, row, first + i);
  }
  float kept[kPacks][V];
  float square = 0;
  const auto take = [&](int64_t i, const Values<V, X>& from, float(&value)[V]) {
    from.compute(a, false, value);
    if (a.residual) store_wide<V>(a.residual + row * a.residual_stride + first + i, value);
#pragma unroll
    for (int j = 0; j < V; ++j) square += value[j] * value[j];
  };
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) take(i, raw[k], kept[k]);
  }
  for (int64_t i = kPacks * step + start; i < a.width; i += step) {
    Values<V, X> more;
    float value[V];
    more.read(a, false, row, first + i);
    take(i, more, value);
  }
  // Not before: what the next kernels read early would delay these loads, and may be what one ahead still
  // writes (the states in mamba1_batch_step_cuda.cu).
  let_next_start();
  const float scale = rsqrtf(block_sum(square, scratch) / static_cast<float>(a.width) + a.eps);
  const auto write = [&](int64_t i, float(&value)[V]) {
    float w[V];
    if (a.weight) widen<V>(w, load_wide<V>(a.weight + first + i));
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] *= a.weight ? scale * w[j] : scale;
    store_wide<V>(static_cast<Y*>(a.y) + row * a.y_stride + first + i, value);
  };
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) write(i, kept[k]);
  }
  for (int64_t i = kPacks * step + start; i < a.width; i += step) {
    Values<V, X> more;
    float value[V];
    more.read(a, true, row, first + i);
    more.compute(a, true, value);
    write(i, value);
  }
}

template <int V, class X, class Y>
void launch_forward(const Launch& how, const RmsNormArgs& a) {
  const auto kernel = rms_norm_forward_kernel<V, X, Y>;
  [[maybe_unused]] static const bool leaves_room = prefer_shared(kernel);
  launch(how, kernel, a);
}

void launch_rms_norm(std::string_view op, const RmsNormArgs& a, int64_t rows, int64_t groups, DType x_dtype,
                     DType y_dtype) {
  if (rows == 0) return;
  // 16 bytes an access: a pack of more would be stored in pieces, each a part of what memory writes at once.
  const bool narrow = size_of(x_dtype) == 2 && size_of(y_dtype) == 2 && !a.residual;
  const int wide = narrow ? 8 : 4;
  const auto rows_allow = [&](int64_t stride, const void* p) {
    return is_multiple(stride, wide) && is_aligned(p);
  };
  const bool vectors = is_multiple(a.width, wide) && rows_allow(a.x_stride, a.x) &&
                       rows_allow(a.z_stride, a.z) && rows_allow(a.before_stride, a.before) &&
                       rows_allow(a.residual_stride, a.residual) && rows_allow(a.y_stride, a.y) &&
                       is_aligned(a.weight);
  // Small blocks, so that many rows are under way.
  const int V = vectors ? wide : 1;
  const int64_t packs = a.width / V, kept = V == 8 ? kKept<8> : V == 4 ? kKept<4> : kKept<1>;
  const int64_t threads = std::min<int64_t>((packs + 32 * kept - 1) / (32 * kept) * 32, kMostThreads);
  const Launch how{.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(groups)),
                   .block = dim3(static_cast<unsigned>(threads)),
                   .overlaps_previous = true};
  dispatch(x_dtype, op, [&](auto x_zero) {
    dispatch(y_dtype, op, [&](auto y_zero) {
      using X = decltype(x_zero);
      using Y = decltype(y_zero);
      if constexpr (sizeof(X) == 2 && sizeof(Y) == 2) {
        if (V == 8) return launch_forward<8, X, Y>(how, a);
      }
      vectors ? launch_forward<4, X, Y>(how, a) : launch_forward<1, X, Y>(how, a);
    });
  });
}

RmsNormArgs args_of(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  return {.x = x.raw(),
          .z = nullptr,
          .before = nullptr,
          .residual = nullptr,
          .weight = weight.defined() ? weight.data<float>() : nullptr,
          .y = y.raw(),
          .x_stride = x.stride(0),
          .z_stride = 0,
          .before_stride = 0,
          .residual_stride = 0,
          .y_stride = y.stride(0),
          .width = x.size(1),
          .eps = eps};
}

}  // namespace

void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  launch_rms_norm("rms_norm", args_of(x, weight, eps, y), x.size(0), 1, x.dtype(), y.dtype());
}

void add_rms_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                  float eps, const Tensor& y) {
  RmsNormArgs a = args_of(x, weight, eps, y);
  a.before = before.data<float>();
  a.before_stride = before.stride(0);
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
