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

// One norm's parameters and result.
struct Norm {
  const float *weight, *bias;
  void* y;
  int64_t y_stride;
  float eps;
};

struct LayerNormArgs {
  const void* x;
  const float* before;  // the residual that x is added to, or null
  float* residual;      // the sum; it may be the same memory
  int64_t x_stride, before_stride, residual_stride, width;
  Norm first, second;  // the second's y may be null: there is one norm then
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

// A line of L2 a thread and turn.
__device__ __forceinline__ void fetch_ahead(const Norm& norm, int64_t width) {
  constexpr int64_t kLine = 32;  // floats
  for (int64_t i = threadIdx.x * kLine; i < width; i += blockDim.x * kLine) {
    prefetch(norm.weight + i);
    prefetch(norm.bias + i);
  }
}

// V columns of a result, from what is left of them without the mean.
template <int V, class Y>
__device__ __forceinline__ void write_normed(const Norm& norm, int64_t row, int64_t column, float scale,
                                             const float (&centred)[V]) {
  float w[V], b[V], y[V];
  widen<V>(w, load_wide<V>(norm.weight + column));
  widen<V>(b, load_wide<V>(norm.bias + column));
#pragma unroll
  for (int j = 0; j < V; ++j) y[j] = centred[j] * scale * w[j] + b[j];
  store_wide<V>(static_cast<Y*>(norm.y) + row * norm.y_stride + column, y);
}

// One block a row. Values beyond what registers keep are read again, for the variance and for the result.
template <int V, class X, class Y>
__global__ void __launch_bounds__(kMostThreads) layer_norm_forward_kernel(const LayerNormArgs a) {
  __shared__ float scratch[2][32];
  constexpr int kPacks = kKept<V>;
  const int64_t step = int64_t{blockDim.x} * V, row = blockIdx.x, start = int64_t{threadIdx.x} * V;
  if (gridDim.x <= kFewRows) {
    fetch_ahead(a.first, a.width);
    if (a.second.y) fetch_ahead(a.second, a.width);
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
  const float variance = block_sum(square, scratch[1]) / count;
  const auto write = [&](const Norm& norm) {
    const float scale = rsqrtf(variance + norm.eps);
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int64_t i = k * step + start;
      if (i < a.width) write_normed<V, Y>(norm, row, i, scale, kept[k]);
    }
    for (int64_t i = kPacks * step + start; i < a.width; i += step) {
      float value[V];
      read_centred(i, value);
      write_normed<V, Y>(norm, row, i, scale, value);
    }
  };
  write(a.first);
  if (a.second.y) write(a.second);
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
  const auto norm_allows = [&](const Norm& norm) {
    return rows_allow(norm.y_stride, norm.y) && is_aligned(norm.weight) && is_aligned(norm.bias);
  };
  const bool vectors = is_multiple(a.width, wide) && rows_allow(a.x_stride, a.x) &&
                       rows_allow(a.before_stride, a.before) && rows_allow(a.residual_stride, a.residual) &&
                       norm_allows(a.first) && norm_allows(a.second);
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

Norm norm_of(const Tensor& weight, const Tensor& bias, float eps, const Tensor& y) {
  return {weight.data<float>(), bias.data<float>(), y.raw(), y.stride(0), eps};
}

LayerNormArgs args_of(const Tensor& x, const Norm& norm) {
  return {.x = x.raw(),
          .before = nullptr,
          .residual = nullptr,
          .x_stride = x.stride(0),
          .before_stride = 0,
          .residual_stride = 0,
          .width = x.size(1),
          .first = norm,
          .second = {}};
}

LayerNormArgs args_of(const Tensor& x, const Tensor& before, const Tensor& residual, const Norm& norm) {
  LayerNormArgs a = args_of(x, norm);
  a.before = before.data<float>();
  a.before_stride = before.stride(0);
  a.residual = residual.data<float>();
  a.residual_stride = residual.stride(0);
  return a;
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y) {
  launch_layer_norm("layer_norm", args_of(x, norm_of(weight, bias, eps, y)), x.size(0), x.dtype(), y.dtype());
}

void add_layer_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                    const Tensor& bias, float eps, const Tensor& y) {
  const LayerNormArgs a = args_of(x, before, residual, norm_of(weight, bias, eps, y));
  launch_layer_norm("add_layer_norm", a, x.size(0), x.dtype(), y.dtype());
}

void layer_norms(const Tensor& x, const Tensor& residual, const LayerNormParameters& first,
                 const LayerNormParameters& second, const Tensor& y, const Tensor& y2) {
  const Norm norm = norm_of(first.weight, first.bias, first.eps, y);
  const Tensor& normed = x.defined() ? x : residual;
  LayerNormArgs a = x.defined() ? args_of(x, residual, residual, norm) : args_of(residual, norm);
  a.second = norm_of(second.weight, second.bias, second.eps, y2);
  launch_layer_norm("layer_norms", a, normed.size(0), normed.dtype(), y.dtype());
}

}  // namespace ssm::cuda
