// The backwards of the three norms. A block takes rows blockIdx.x, + gridDim.x, ... of a group; a thread
// holds the same columns of each in registers, and its part of dweight until the end. As many blocks as rows,
// at most kBlocks, whatever the card: dweight is summed in an order that T gives.
#include "ssm/ops/cuda/column_sums.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kResident = 1152;  // threads a multiprocessor runs of these, by their registers
constexpr int kMostThreads = 1024;

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

// Two sums over a block at once; `scratch` may be used again after the next barrier.
__device__ __forceinline__ float2 block_sums(float a, float b, float2* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  a = warp_sum(a), b = warp_sum(b);
  if (lane == 0) scratch[warp] = make_float2(a, b);
  __syncthreads();
  const float2 mine = lane < warps ? scratch[lane] : make_float2(0, 0);
  return make_float2(warp_sum(mine.x), warp_sum(mine.y));
}

// X is the type of x (and z, dz), Y that of dy; V elements are moved at a time, kPacks of them a thread.
template <int V, int kPacks, class X, class Y, bool kGated>
__global__ void __launch_bounds__(V == 4 && kPacks == 1 ? 512 : kMostThreads)
    rms_norm_backward_kernel(const BackwardArgs a) {
  __shared__ float2 scratch[2][32];
  let_next_start();
  grid_dependency_wait();
  const int64_t first = blockIdx.y * a.width;
  const auto column = [&](int k) { return (int64_t{k} * blockDim.x + threadIdx.x) * V; };
  constexpr int kUnrolled = kPacks > 8 ? 1 : kPacks;  // wide rows without vectors are rare: less to compile
  constexpr bool kEarly = !kGated && kPacks == 1;     // registers allow dresidual to come with the others
  float dweight[kPacks][V] = {};
  int turn = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
    float x[kPacks][V], z[kGated ? kPacks : 1][V] = {}, g[kPacks][V];
    float above[kEarly ? kPacks : 1][V] = {};
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) < a.width) {
        load<V>(x[k], static_cast<const X*>(a.x) + row * a.x_stride + first + column(k));
        if constexpr (kGated)
          load<V>(z[k], static_cast<const X*>(a.z) + row * a.z_stride + first + column(k));
        load<V>(g[k], static_cast<const Y*>(a.dy) + row * a.dy_stride + first + column(k));
        if (kEarly && a.dresidual)
          load<V>(above[kEarly ? k : 0], a.dresidual + row * a.dresidual_stride + column(k));
      }
    }
    const auto u = [&](int k, int j) { return kGated ? x[k][j] * silu(z[kGated ? k : 0][j]) : x[k][j]; };
    float square = 0, dot = 0;
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) < a.width) {
        float w[V];
        if (a.weight) load<V>(w, a.weight + first + column(k));
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float value = u(k, j);
          square += value * value;
          dot += (a.weight ? g[k][j] * w[j] : g[k][j]) * value;
        }
      }
    }
    const float2 sums = block_sums(square, dot, scratch[turn]);
    const auto count = static_cast<float>(a.width);
    const float r = rsqrtf(sums.x / count + a.eps), c = r * r * (r * (sums.y / count));
#pragma unroll kUnrolled
    for (int k = 0; k < kPacks; ++k) {
      if (column(k) < a.width) {
        float w[V], du[V], slope[V], dresidual[V];
        if (a.weight) load<V>(w, a.weight + first + column(k));
        if (!kGated && !kEarly && a.dresidual)
          load<V>(dresidual, a.dresidual + row * a.dresidual_stride + column(k));
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float value = u(k, j), scaled = g[k][j] * r;
          dweight[k][j] += scaled * value;
          du[j] = (a.weight ? scaled * w[j] : scaled) - value * c;
          if constexpr (kGated) {
            const float s = sigmoid(z[k][j]), gate = z[k][j] * s;
            slope[j] = du[j] * x[k][j] * s * (1.0f + z[k][j] * sigmoid(-z[k][j]));
            du[j] *= gate;
          } else if (a.dresidual) {
            du[j] += kEarly ? above[kEarly ? k : 0][j] : dresidual[j];
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

// How a row is shared out among a block's threads.
struct Shares {
  int elements, packs;
  int64_t threads;
  Shares(int64_t width, bool vectors) : elements(vectors ? 4 : 1) {
    packs = vectors ? (width <= 2048 ? 1 : width <= 8192 ? 2 : 8) : (width <= 2 * kMostThreads ? 2 : 32);
    threads = ((width + elements * packs - 1) / (elements * packs) + 31) / 32 * 32;
  }
};

template <class X, class Y, bool kGated>
void launch_backward(const BackwardArgs& a, unsigned blocks, unsigned groups, const Shares& shares) {
  const auto run = [&](auto kernel) {
    launch({.grid = dim3(blocks, groups),
            .block = dim3(static_cast<unsigned>(shares.threads)),
            .overlaps_previous = true},
           kernel, a);
  };
  if (shares.elements == 1) {
    if (shares.packs == 2) return run(rms_norm_backward_kernel<1, 2, X, Y, kGated>);
    return run(rms_norm_backward_kernel<1, 32, X, Y, kGated>);
  }
  if (shares.packs == 1) return run(rms_norm_backward_kernel<4, 1, X, Y, kGated>);
  if (shares.packs == 2) return run(rms_norm_backward_kernel<4, 2, X, Y, kGated>);
  run(rms_norm_backward_kernel<4, 8, X, Y, kGated>);
}

}  // namespace

void rms_norm_backward(const RmsNormBackward& b) {
  const int64_t T = b.x.size(0), M = b.x.size(1), width = M / b.groups;
  SSM_CHECK(width <= 32 * kMostThreads, "rms_norm_backward: rows of {} on a card, at most {}", width,
            32 * kMostThreads);
  SSM_CHECK(b.dy.dtype() == b.x.dtype() || (b.x.dtype() == DType::f32 && !b.z.defined()),
            "rms_norm_backward: dy is {} beside {}", name_of(b.dy.dtype()), name_of(b.x.dtype()));
  SSM_CHECK(!b.dx.defined() || b.dx.dtype() == DType::f32 || b.dx.dtype() == b.dy.dtype(),
            "rms_norm_backward: dx is {} beside dy of {}", name_of(b.dx.dtype()), name_of(b.dy.dtype()));
  if (T == 0) return;
  const bool vectors = width % 4 == 0 && fits(b.x, 4) && fits(b.z, 4) && fits(b.dy, 4) &&
                       fits(b.dresidual, 4) && fits(b.dx, 4) && fits(b.dz, 4) &&
                       (!b.weight.defined() || reinterpret_cast<uintptr_t>(b.weight.raw()) % 16 == 0);
  const Shares shares(width, vectors);
  const int64_t resident = properties().multiprocessors * std::max<int64_t>(1, kResident / shares.threads);
  const int64_t blocks = std::min(T, std::max<int64_t>(1, resident / b.groups));
  const Tensor parts = b.dweight.defined() ? Tensor::empty({blocks, M}, DType::f32, kCuda) : Tensor{};
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
                       .parts = floats(parts),
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
  const auto grid = static_cast<unsigned>(blocks), groups = static_cast<unsigned>(b.groups);
  dispatch(b.dy.dtype(), "rms_norm_backward", [&](auto zero) {
    using Y = decltype(zero);
    if (b.z.defined())
      launch_backward<Y, Y, true>(a, grid, groups, shares);
    else if (b.x.dtype() == DType::f32)
      launch_backward<float, Y, false>(a, grid, groups, shares);
    else
      launch_backward<Y, Y, false>(a, grid, groups, shares);
  });
  if (b.dweight.defined()) add_column_sums<float>(parts.data<float>(), M, blocks, M, b.dweight.data<float>());
}

}  // namespace ssm::cuda
