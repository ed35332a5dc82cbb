#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/layer_norm/layer_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kMostThreads = 512;
// Packs of a row that a thread holds in registers: rows up to 8192 are read once.
template <int V>
inline constexpr int kKept = V == 1 ? 16 : 4;
// Up to so many rows blocks fetch the parameters ahead: in a decode step no block before them has.
constexpr unsigned kFewRows = 128;

struct LayerNormArgs {
  const void* x;
  const float* before;  // the residual that x is added to, or null
  float* residual;      // the sum; it may be the same memory
  const float *weight, *bias;
  void* y;
  int64_t x_stride, before_stride, residual_stride, y_stride, width;
  float eps;
};

// What is normed, V columns: x, or residual + x, or the residual alone, updated before. Reading is apart from
// computing, so that loads are in flight together.
template <int V, class X>
struct Values {
  static constexpr bool kMayAdd = V < 8;  // packs of eight are for what has no f32 residual
  Wide<X, V> x;
  Wide<float, V> residual;
  __device__ __forceinline__ void read(const LayerNormArgs& a, bool updated, int64_t row, int64_t column) {
    x = load_wide<V>(static_cast<const X*>(a.x) + row * a.x_stride + column);
    if (!kMayAdd || !a.residual) return;
    residual = load_wide<V>(updated ? a.residual + row * a.residual_stride + column
                                    : a.before + row * a.before_stride + column);
  }
  __device__ __forceinline__ void compute(const LayerNormArgs& a, bool updated, float (&to)[V]) const {
    widen<V>(to, x);
    if (!kMayAdd || !a.residual) return;
    float r[V];
    widen<V>(r, residual);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = updated ? r[i] : to[i] + r[i];
  }
};

// One block a row. Values beyond what registers keep are read again, for the variance and for the result.
template <int V, class X, class Y>
__global__ void __launch_bounds__(kMostThreads) layer_norm_forward_kernel(const LayerNormArgs a) {
  __shared__ float scratch[2][32];
  constexpr int kPacks = kKept<V>;
  const int64_t step = int64_t{blockDim.x} * V, row = blockIdx.x, start = int64_t{threadIdx.x} * V;
  if (gridDim.x <= kFewRows) {
    constexpr int64_t kLine = 32;  // floats
    for (int64_t i = threadIdx.x * kLine; i < a.width; i += blockDim.x * kLine) {
      prefetch(a.weight + i);
      prefetch(a.bias + i);
    }
  }
  let_next_start();
  grid_dependency_wait();
  Values<V, X> raw[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) raw[k].read(a, false, row, i);
  }
  float kept[kPacks][V];
  float sum = 0;
  const auto take = [&](int64_t i, const Values<V, X>& from, float(&value)[V]) {
    from.compute(a, false, value);
    if (a.residual) store_wide<V>(a.residual + row * a.residual_stride + i, value);
#pragma unroll
    for (int j = 0; j < V; ++j) sum += value[j];
  };
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) take(i, raw[k], kept[k]);
  }
  for (int64_t i = kPacks * step + start; i < a.width; i += step) {
    Values<V, X> more;
    float value[V];
    more.read(a, false, row, i);
    take(i, more, value);
  }
  const auto count = static_cast<float>(a.width);
  const float mean = block_sum(sum, scratch[0]) / count;
  float square = 0;
  const auto centre = [&](float(&value)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] -= mean;
      square += value[j] * value[j];
    }
  };
  const auto read_centred = [&](int64_t i, float(&value)[V]) {
    Values<V, X> more;
    more.read(a, true, row, i);
    more.compute(a, true, value);
    centre(value);
  };
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (k * step + start < a.width) centre(kept[k]);
  }
  for (int64_t i = kPacks * step + start; i < a.width; i += step) {
    float value[V];
    read_centred(i, value);
  }
  const float scale = rsqrtf(block_sum(square, scratch[1]) / count + a.eps);
  const auto write = [&](int64_t i, float(&value)[V]) {
    float w[V], b[V];
    widen<V>(w, load_wide<V>(a.weight + i));
    widen<V>(b, load_wide<V>(a.bias + i));
#pragma unroll
    for (int j = 0; j < V; ++j) value[j] = value[j] * scale * w[j] + b[j];
    store_wide<V>(static_cast<Y*>(a.y) + row * a.y_stride + i, value);
  };
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t i = k * step + start;
    if (i < a.width) write(i, kept[k]);
  }
  for (int64_t i = kPacks * step + start; i < a.width; i += step) {
    float value[V];
    read_centred(i, value);
    write(i, value);
  }
}

void launch_layer_norm(std::string_view op, const LayerNormArgs& a, int64_t rows, DType x_dtype,
                       DType y_dtype) {
  if (rows == 0) return;
  // 16 bytes an access: a pack of more would be stored in pieces, each a part of what memory writes at once.
  const bool narrow = size_of(x_dtype) == 2 && size_of(y_dtype) == 2 && !a.residual;
  const int wide = narrow ? 8 : 4;
  const auto rows_allow = [&](int64_t stride, const void* p) {
    return is_multiple(stride, wide) && is_aligned(p);
  };
  const bool vectors = is_multiple(a.width, wide) && rows_allow(a.x_stride, a.x) &&
                       rows_allow(a.before_stride, a.before) && rows_allow(a.residual_stride, a.residual) &&
                       rows_allow(a.y_stride, a.y) && is_aligned(a.weight) && is_aligned(a.bias);
  // Small blocks, so that many rows are under way.
  const int V = vectors ? wide : 1;
  const int64_t packs = a.width / V, kept = V == 8 ? kKept<8> : V == 4 ? kKept<4> : kKept<1>;
  const int64_t threads = std::min<int64_t>((packs + 32 * kept - 1) / (32 * kept) * 32, kMostThreads);
  const Launch how{.grid = dim3(static_cast<unsigned>(rows)),
                   .block = dim3(static_cast<unsigned>(threads)),
                   .overlaps_previous = true};
  dispatch(x_dtype, op, [&](auto x_zero) {
    dispatch(y_dtype, op, [&](auto y_zero) {
      using X = decltype(x_zero);
      using Y = decltype(y_zero);
      if constexpr (sizeof(X) == 2 && sizeof(Y) == 2) {
        if (V == 8) return launch(how, layer_norm_forward_kernel<8, X, Y>, a);
      }
      launch(how, vectors ? layer_norm_forward_kernel<4, X, Y> : layer_norm_forward_kernel<1, X, Y>, a);
    });
  });
}

LayerNormArgs args_of(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y) {
  return {.x = x.raw(),
          .before = nullptr,
          .residual = nullptr,
          .weight = weight.data<float>(),
          .bias = bias.data<float>(),
          .y = y.raw(),
          .x_stride = x.stride(0),
          .before_stride = 0,
          .residual_stride = 0,
          .y_stride = y.stride(0),
          .width = x.size(1),
          .eps = eps};
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y) {
  launch_layer_norm("layer_norm", args_of(x, weight, bias, eps, y), x.size(0), x.dtype(), y.dtype());
}

void add_layer_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                    const Tensor& bias, float eps, const Tensor& y) {
  LayerNormArgs a = args_of(x, weight, bias, eps, y);
  a.before = before.data<float>();
  a.before_stride = before.stride(0);
  a.residual = residual.data<float>();
  a.residual_stride = residual.stride(0);
  launch_layer_norm("add_layer_norm", a, x.size(0), x.dtype(), y.dtype());
}

}  // namespace ssm::cuda
