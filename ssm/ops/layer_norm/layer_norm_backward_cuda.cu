// The backwards of both norms. A block takes rows blockIdx.x, + gridDim.x, ...; a thread holds the same
// columns of each in registers, and its part of dweight and dbias until the end. As many blocks as rows, at
// most those that run at once: sums over rows are taken in an order that T and the card give.
#include <algorithm>

#include "ssm/ops/cuda/column_sums.cuh"
#include "ssm/ops/cuda/two_sums.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/layer_norm/layer_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kMostWidth = 32 * 1024;

struct BackwardArgs {
  const void *x, *dy;
  const float* weight;
  float* dresidual;  // or null; du is added
  void* dx;          // or null
  float* parts;      // [blocks, 2, M] of dweight and dbias, or null
  int64_t x_stride, dy_stride, dresidual_stride, dx_stride, rows, width;
  float eps;
  bool dx_is_f32;
};

// What a thread reads of a row, as it lies there: fetched a row ahead, before the block waits for its sums.
template <int V, int kPacks, class X, class Y>
struct Fetched {
  Pack<X, V> x[kPacks];
  Pack<Y, V> dy[kPacks];
  Pack<float, V> above[kPacks];
};

// X is the type of x, Y that of dy; V elements are moved at a time, kPacks of them a thread.
template <int V, int kPacks, int kBound, int kBlocks, class X, class Y>
__global__ void __launch_bounds__(kBound, kBlocks) layer_norm_backward_kernel(const BackwardArgs a) {
  __shared__ float2 scratch[2][32];
  let_next_start();
  grid_dependency_wait();
  const auto column = [&](int k) { return (int64_t{k} * blockDim.x + threadIdx.x) * V; };
  constexpr int kUnrolled = kPacks > 2 ? 1 : kPacks;  // such wide rows are rare: less to compile
  using Row = Fetched<V, kPacks, X, Y>;
  const auto fetch = [&](int64_t row, Row& to) {
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (row >= a.rows || column(k) >= a.width) continue;
      to.x[k] = load_pack<V>(static_cast<const X*>(a.x) + row * a.x_stride + column(k));
      to.dy[k] = load_pack<V>(static_cast<const Y*>(a.dy) + row * a.dy_stride + column(k));
      if (a.dresidual) to.above[k] = load_pack<V>(a.dresidual + row * a.dresidual_stride + column(k));
    }
  };
  const auto count = static_cast<float>(a.width);
  float dweight[kPacks][V] = {}, dbias[kPacks][V] = {};
  Row now, next;
  fetch(blockIdx.x, now);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, now = next) {
    fetch(row + gridDim.x, next);
    float sum = 0, sum_g = 0;
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) >= a.width) continue;
      float w[V];
      load<V>(w, a.weight + column(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        sum += to_f32(now.x[k].values[j]);
        sum_g += to_f32(now.dy[k].values[j]) * w[j];
      }
    }
    const float2 sums = block_sums(sum, sum_g, scratch[0]);
    const float mean = sums.x / count, mean_g = sums.y / count;
    float square = 0, dot = 0;
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) >= a.width) continue;
      float w[V];
      load<V>(w, a.weight + column(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float centred = to_f32(now.x[k].values[j]) - mean;
        square += centred * centred;
        dot += to_f32(now.dy[k].values[j]) * w[j] * centred;
      }
    }
    const float2 moments = block_sums(square, dot, scratch[1]);
    const float r = rsqrtf(moments.x / count + a.eps), c = r * r * (moments.y / count);
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) >= a.width) continue;
      float w[V], du[V];
      load<V>(w, a.weight + column(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float centred = to_f32(now.x[k].values[j]) - mean, dy = to_f32(now.dy[k].values[j]);
        dweight[k][j] += dy * (centred * r);
        dbias[k][j] += dy;
        du[j] = r * (dy * w[j] - mean_g - centred * c);
        if (a.dresidual) du[j] += now.above[k].values[j];
      }
      if (a.dresidual) store<V>(a.dresidual + row * a.dresidual_stride + column(k), du);
      if (a.dx && a.dx_is_f32)
        store<V>(static_cast<float*>(a.dx) + row * a.dx_stride + column(k), du);
      else if (a.dx)  // 16 bits are the type of x, or beside an f32 residual that of dy
        store<V>(static_cast<Y*>(a.dx) + row * a.dx_stride + column(k), du);
    }
  }
  if (!a.parts) return;
  float* const parts = a.parts + 2 * blockIdx.x * a.width;
#pragma unroll kUnrolled
  for (int k = 0; k < kPacks; ++k) {
    if (column(k) >= a.width) continue;
    store<V>(parts + column(k), dweight[k]);
    store<V>(parts + a.width + column(k), dbias[k]);
  }
}

bool fits(const Tensor& t) {
  return !t.defined() || (is_multiple(t.stride(0), 4) && is_aligned(t.raw(), 4 * size_of(t.dtype())));
}

// Launches as many blocks as run at once, at most one a row, and adds their parts to what is wanted.
template <int V, int kPacks, int kBound, int kBlocks, class X, class Y>
void run(BackwardArgs a, const LayerNormGrads& grads) {
  const auto kernel = layer_norm_backward_kernel<V, kPacks, kBound, kBlocks, X, Y>;
  const int64_t threads = ((a.width + V * kPacks - 1) / (V * kPacks) + 31) / 32 * 32;
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, static_cast<int>(threads), 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t at_once = std::max<int64_t>(1, resident * int64_t{properties().multiprocessors});
  const int64_t blocks = std::min(a.rows, at_once);
  const bool sums = grads.dweight.defined() || grads.dbias.defined();
  const Tensor parts = sums ? Tensor::empty({blocks, 2 * a.width}, DType::f32, kCuda) : Tensor{};
  a.parts = sums ? parts.data<float>() : nullptr;
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(static_cast<unsigned>(threads)),
          .overlaps_previous = true},
         kernel, a);
  const auto add_to = [&](const Tensor& to, int64_t from) {
    if (to.defined()) add_column_sums<float>(a.parts + from, 2 * a.width, blocks, a.width, to.data<float>());
  };
  add_to(grads.dweight, 0);
  add_to(grads.dbias, a.width);
}

template <class X, class Y>
void run(const BackwardArgs& a, bool vectors, const LayerNormGrads& grads) {
  if (!vectors) {
    if (a.width <= 2048) return run<1, 2, 1024, 1, X, Y>(a, grads);
    return run<1, 32, 1024, 1, X, Y>(a, grads);
  }
  if (a.width <= 1536) return run<4, 1, 384, 3, X, Y>(a, grads);
  if (a.width <= 5120) return run<4, 2, 640, 1, X, Y>(a, grads);
  run<4, 8, 1024, 1, X, Y>(a, grads);
}

}  // namespace

void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const Tensor& dresidual, const LayerNormGrads& grads) {
  const int64_t T = x.size(0), M = x.size(1);
  const Tensor& dx = grads.dx;
  SSM_CHECK(M <= kMostWidth, "layer_norm_backward: rows of {} on a card, at most {}", M, kMostWidth);
  SSM_CHECK(dy.dtype() == x.dtype() || x.dtype() == DType::f32, "layer_norm_backward: dy is {} beside {}",
            name_of(dy.dtype()), name_of(x.dtype()));
  SSM_CHECK(!dx.defined() || dx.dtype() == DType::f32 || dx.dtype() == dy.dtype(),
            "layer_norm_backward: dx is {} beside dy of {}", name_of(dx.dtype()), name_of(dy.dtype()));
  if (T == 0) return;
  const bool vectors =
      is_multiple(M, 4) && fits(x) && fits(dy) && fits(dresidual) && fits(dx) && is_aligned(weight.raw());
  const BackwardArgs a{.x = x.raw(),
                       .dy = dy.raw(),
                       .weight = weight.data<float>(),
                       .dresidual = dresidual.defined() ? dresidual.data<float>() : nullptr,
                       .dx = dx.defined() ? dx.raw() : nullptr,
                       .parts = nullptr,
                       .x_stride = x.stride(0),
                       .dy_stride = dy.stride(0),
                       .dresidual_stride = dresidual.defined() ? dresidual.stride(0) : 0,
                       .dx_stride = dx.defined() ? dx.stride(0) : 0,
                       .rows = T,
                       .width = M,
                       .eps = eps,
                       .dx_is_f32 = dx.defined() && dx.dtype() == DType::f32};
  dispatch(dy.dtype(), "layer_norm_backward", [&](auto zero) {
    using Y = decltype(zero);
    if (x.dtype() == DType::f32)
      run<float, Y>(a, vectors, grads);
    else
      run<Y, Y>(a, vectors, grads);
  });
}

}  // namespace ssm::cuda
