// The backwards of the three norms. A block takes rows blockIdx.x, + gridDim.x, ... of a group; a thread
// holds the same columns of each in registers, and its part of dweight until the end. As many blocks as rows,
// at most kBlocks, whatever the card: dweight is summed in an order that T gives.
#include "ssm/ops/cuda/column_sums.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/two_sums.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kMostWidth = 32 * 1024;

struct BackwardArgs {
  const void *x, *z, *dy;
  const float* weight;  // or null
  float* dresidual;     // or null; du is added
  void *dx, *dz;        // or null
  float* parts;         // [blocks, M] of dweight, or null
  int64_t x_stride, z_stride, dy_stride, dresidual_stride, dx_stride, dz_stride;
  int64_t rows, width, M;  // width of a group
  float eps;
  bool dx_is_f32;
};

// What a thread reads of a row, as it lies there: fetched a row ahead, before the block waits for its sums.
template <int V, int kPacks, class X, class Y, bool kGated>
struct Fetched {
  Pack<X, V> x[kPacks], z[kGated ? kPacks : 1];
  Pack<Y, V> dy[kPacks];
  Pack<float, V> above[kGated ? 1 : kPacks];
};

// X is the type of x (and z, dz), Y that of dy; V elements are moved at a time, kPacks of them a thread.
// Small blocks run three a multiprocessor, and so have 56 registers a thread.
template <int V, int kPacks, int kBound, class X, class Y, bool kGated>
__global__ void __launch_bounds__(kBound, kBound <= 384 ? 3 : 1)
    rms_norm_backward_kernel(const BackwardArgs a) {
  __shared__ float2 scratch[2][32];
  let_next_start();
  grid_dependency_wait();
  const int64_t first = blockIdx.y * a.width;
  const auto column = [&](int k) { return (int64_t{k} * blockDim.x + threadIdx.x) * V; };
  constexpr int kUnrolled = kPacks > 8 ? 1 : kPacks;  // wide rows without vectors are rare: less to compile
  using Row = Fetched<V, kPacks, X, Y, kGated>;
  const auto fetch = [&](int64_t row, Row& to) {
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (row >= a.rows || column(k) >= a.width) continue;
      to.x[k] = load_pack<V>(static_cast<const X*>(a.x) + row * a.x_stride + first + column(k));
      to.dy[k] = load_pack<V>(static_cast<const Y*>(a.dy) + row * a.dy_stride + first + column(k));
      if constexpr (kGated)
        to.z[k] = load_pack<V>(static_cast<const X*>(a.z) + row * a.z_stride + first + column(k));
      else if (a.dresidual)
        to.above[k] = load_pack<V>(a.dresidual + row * a.dresidual_stride + column(k));
    }
  };
  float dweight[kPacks][V] = {};
  Row now, next;
  fetch(blockIdx.x, now);
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1, now = next) {
    fetch(row + gridDim.x, next);
    const auto u = [&](int k, int j) {
      const float x = to_f32(now.x[k].values[j]);
      return kGated ? x * silu(to_f32(now.z[kGated ? k : 0].values[j])) : x;
    };
    float square = 0, dot = 0;
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) >= a.width) continue;
      float w[V];
      if (a.weight) load<V>(w, a.weight + first + column(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float value = u(k, j), g = to_f32(now.dy[k].values[j]);
        square += value * value;
        dot += (a.weight ? g * w[j] : g) * value;
      }
    }
    const float2 sums = block_sums(square, dot, scratch[turn]);
    const auto count = static_cast<float>(a.width);
    const float r = rsqrtf(sums.x / count + a.eps), c = r * r * (r * (sums.y / count));
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) >= a.width) continue;
      float w[V], du[V], slope[V];
      if (a.weight) load<V>(w, a.weight + first + column(k));
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float value = u(k, j), scaled = to_f32(now.dy[k].values[j]) * r;
        dweight[k][j] += scaled * value;
        du[j] = (a.weight ? scaled * w[j] : scaled) - value * c;
        if constexpr (kGated) {
          const float z = to_f32(now.z[k].values[j]), s = sigmoid(z);
          slope[j] = du[j] * to_f32(now.x[k].values[j]) * s * (1.0f + z * sigmoid(-z));
          du[j] *= z * s;
        } else if (a.dresidual) {
          du[j] += now.above[k].values[j];
        }
      }
      if (!kGated && a.dresidual) store<V>(a.dresidual + row * a.dresidual_stride + column(k), du);
      if (a.dx && a.dx_is_f32)
        store<V>(static_cast<float*>(a.dx) + row * a.dx_stride + first + column(k), du);
      else if (a.dx)  // 16 bits are the type of x, or beside an f32 residual that of dy
        store<V>(static_cast<Y*>(a.dx) + row * a.dx_stride + first + column(k), du);
      if (kGated && a.dz) store<V>(static_cast<X*>(a.dz) + row * a.dz_stride + first + column(k), slope);
    }
  }
  if (!a.parts) return;
#pragma unroll kUnrolled
  for (int k = 0; k < kPacks; ++k) {
    if (column(k) < a.width) store<V>(a.parts + blockIdx.x * a.M + first + column(k), dweight[k]);
  }
}

bool fits(const Tensor& t, int64_t unit) {
  return !t.defined() ||
         (t.stride(0) % unit == 0 &&
          reinterpret_cast<uintptr_t>(t.raw()) % (static_cast<size_t>(unit) * size_of(t.dtype())) == 0);
}

// Launches as many blocks as run at once, at most one a row, and adds their parts to dweight, unless null.
template <int V, int kPacks, int kBound, class X, class Y, bool kGated>
void run(BackwardArgs a, int64_t groups, float* dweight) {
  const auto kernel = rms_norm_backward_kernel<V, kPacks, kBound, X, Y, kGated>;
  const int64_t threads = ((a.width + V * kPacks - 1) / (V * kPacks) + 31) / 32 * 32;
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, static_cast<int>(threads), 0),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t at_once = std::max<int64_t>(1, resident * int64_t{properties().multiprocessors} / groups);
  const int64_t blocks = std::min(a.rows, at_once);
  const Tensor parts = dweight ? Tensor::empty({blocks, a.M}, DType::f32, kCuda) : Tensor{};
  a.parts = dweight ? parts.data<float>() : nullptr;
  launch({.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(groups)),
          .block = dim3(static_cast<unsigned>(threads)),
          .overlaps_previous = true},
         kernel, a);
  if (dweight) add_column_sums<float>(a.parts, a.M, blocks, a.M, dweight);
}

template <class X, class Y, bool kGated>
void run(const BackwardArgs& a, int64_t groups, bool vectors, float* dweight) {
  if (!vectors) {
    if (a.width <= 2048) return run<1, 2, 1024, X, Y, kGated>(a, groups, dweight);
    return run<1, 32, 1024, X, Y, kGated>(a, groups, dweight);
  }
  if (a.width <= 1536) return run<4, 1, 384, X, Y, kGated>(a, groups, dweight);
  if (a.width <= 5120) return run<4, 2, 640, X, Y, kGated>(a, groups, dweight);
  run<4, 8, 1024, X, Y, kGated>(a, groups, dweight);
}

}  // namespace

void rms_norm_backward(const RmsNormBackward& b) {
  const int64_t T = b.x.size(0), M = b.x.size(1), width = M / b.groups;
  SSM_CHECK(width <= kMostWidth, "rms_norm_backward: rows of {} on a card, at most {}", width, kMostWidth);
  SSM_CHECK(b.dy.dtype() == b.x.dtype() || (b.x.dtype() == DType::f32 && !b.z.defined()),
            "rms_norm_backward: dy is {} beside {}", name_of(b.dy.dtype()), name_of(b.x.dtype()));
  SSM_CHECK(!b.dx.defined() || b.dx.dtype() == DType::f32 || b.dx.dtype() == b.dy.dtype(),
            "rms_norm_backward: dx is {} beside dy of {}", name_of(b.dx.dtype()), name_of(b.dy.dtype()));
  if (T == 0) return;
  const bool vectors = width % 4 == 0 && fits(b.x, 4) && fits(b.z, 4) && fits(b.dy, 4) &&
                       fits(b.dresidual, 4) && fits(b.dx, 4) && fits(b.dz, 4) &&
                       (!b.weight.defined() || reinterpret_cast<uintptr_t>(b.weight.raw()) % 16 == 0);
  const auto at = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const BackwardArgs a{.x = at(b.x),
                       .z = at(b.z),
                       .dy = at(b.dy),
                       .weight = floats(b.weight),
                       .dresidual = floats(b.dresidual),
                       .dx = at(b.dx),
                       .dz = at(b.dz),
                       .parts = nullptr,
                       .x_stride = stride(b.x),
                       .z_stride = stride(b.z),
                       .dy_stride = stride(b.dy),
                       .dresidual_stride = stride(b.dresidual),
                       .dx_stride = stride(b.dx),
                       .dz_stride = stride(b.dz),
                       .rows = T,
                       .width = width,
                       .M = M,
                       .eps = b.eps,
                       .dx_is_f32 = b.dx.defined() && b.dx.dtype() == DType::f32};
  float* const dweight = floats(b.dweight);
  dispatch(b.dy.dtype(), "rms_norm_backward", [&](auto zero) {
    using Y = decltype(zero);
    if (b.z.defined())
      run<Y, Y, true>(a, b.groups, vectors, dweight);
    else if (b.x.dtype() == DType::f32)
      run<float, Y, false>(a, b.groups, vectors, dweight);
    else
      run<Y, Y, false>(a, b.groups, vectors, dweight);
  });
}

}  // namespace ssm::cuda
