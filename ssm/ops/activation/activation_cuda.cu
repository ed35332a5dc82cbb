#include "ssm/ops/activation/activation_cuda.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/activation/gelu.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"

namespace ssm::cuda {
namespace {

__device__ __forceinline__ float gelu_slope(float x) {
  const float density = 0.39894228040143268f * exp_fast(-0.5f * x * x);
  return fmaf(x, density, normal_distribution(x));
}

// The slope of silu; 1 - sigmoid(z) is sigmoid(-z), which does not cancel.
__device__ __forceinline__ float silu_slope(float z) { return sigmoid(z) * (1.0f + z * sigmoid(-z)); }

// A row is `packs` times V elements; strides are in elements. What a kernel has no use for, or is not wanted,
// is null.
template <class X>
struct ActivationArgs {
  const X *x, *z, *dy;
  X *y, *dx, *dz;
  int64_t x_stride, z_stride, dy_stride, y_stride, dx_stride, dz_stride, rows, packs;
};

// Calls f(row, column) for what this thread has of each row.
template <int V, class X, class F>
__device__ __forceinline__ void for_packs(const ActivationArgs<X>& a, const F& f) {
  let_next_start();  // in a decode step a product, which fetches its weights meanwhile
  grid_dependency_wait();
  const int64_t pack = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pack >= a.packs) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) f(row, pack * V);
}

template <int V, class X>
__global__ void gelu_forward_kernel(const ActivationArgs<X> a) {
  for_packs<V>(a, [&](int64_t row, int64_t i) {
    float x[V];
    load<V>(x, a.x + row * a.x_stride + i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = gelu(x[j]);
    store<V>(a.y + row * a.y_stride + i, x);
  });
}

template <int V, class X>
__global__ void gelu_backward_kernel(const ActivationArgs<X> a) {
  for_packs<V>(a, [&](int64_t row, int64_t i) {
    float x[V], dy[V];
    load<V>(x, a.x + row * a.x_stride + i);
    load<V>(dy, a.dy + row * a.dy_stride + i);
#pragma unroll
    for (int j = 0; j < V; ++j) dy[j] *= gelu_slope(x[j]);
    store<V>(a.dx + row * a.dx_stride + i, dy);
  });
}

template <int V, class X>
__global__ void gated_silu_forward_kernel(const ActivationArgs<X> a) {
  for_packs<V>(a, [&](int64_t row, int64_t i) {
    float x[V], z[V];
    load<V>(x, a.x + row * a.x_stride + i);
    load<V>(z, a.z + row * a.z_stride + i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] *= silu(z[j]);
    store<V>(a.y + row * a.y_stride + i, x);
  });
}

template <int V, class X>
__global__ void gated_silu_backward_kernel(const ActivationArgs<X> a) {
  for_packs<V>(a, [&](int64_t row, int64_t i) {
    float x[V], z[V], dy[V], dx[V];
    load<V>(x, a.x + row * a.x_stride + i);
    load<V>(z, a.z + row * a.z_stride + i);
    load<V>(dy, a.dy + row * a.dy_stride + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      dx[j] = dy[j] * silu(z[j]);
      x[j] *= dy[j] * silu_slope(z[j]);
    }
    if (a.dx) store<V>(a.dx + row * a.dx_stride + i, dx);
    if (a.dz) store<V>(a.dz + row * a.dz_stride + i, x);
  });
}

// The operands [T, M]; what is undefined is not there.
struct Operands {
  Tensor x, z, dy, y, dx, dz;
};

// Rows without gaps are taken as one. V is 16 bytes of elements, where all operands allow that.
template <class X>
void launch_rows(const Operands& o, void (*vectors)(ActivationArgs<X>), void (*single)(ActivationArgs<X>)) {
  constexpr int64_t kThreads = 256, kMostRows = 32768, kVector = 16 / sizeof(X);
  int64_t rows = o.x.size(0), width = o.x.size(1);
  if (rows == 0 || width == 0) return;
  const Tensor* const all[] = {&o.x, &o.z, &o.dy, &o.y, &o.dx, &o.dz};
  if (std::all_of(std::begin(all), std::end(all),
                  [](const Tensor* t) { return !t->defined() || t->contiguous(); }))
    width *= std::exchange(rows, 1);
  const bool wide =
      is_multiple(width, kVector) && std::all_of(std::begin(all), std::end(all), [&](const Tensor* t) {
        return !t->defined() || ((rows == 1 || is_multiple(t->stride(0), kVector)) && is_aligned(t->raw()));
      });
  const auto at = [](const Tensor& t) { return t.defined() ? reinterpret_cast<X*>(t.raw()) : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const ActivationArgs<X> a{.x = at(o.x),
                            .z = at(o.z),
                            .dy = at(o.dy),
                            .y = at(o.y),
                            .dx = at(o.dx),
                            .dz = at(o.dz),
                            .x_stride = stride(o.x),
                            .z_stride = stride(o.z),
                            .dy_stride = stride(o.dy),
                            .y_stride = stride(o.y),
                            .dx_stride = stride(o.dx),
                            .dz_stride = stride(o.dz),
                            .rows = rows,
                            .packs = wide ? width / kVector : width};
  launch({.grid = dim3(static_cast<unsigned>((a.packs + kThreads - 1) / kThreads),
                       static_cast<unsigned>(std::min(rows, kMostRows))),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         wide ? vectors : single, a);
}

// kernel_of(V, zero) is the kernel for V elements of the type of zero at a time.
template <class F>
void launch_activation(std::string_view op, const Operands& o, const F& kernel_of) {
  dispatch(o.x.dtype(), op, [&](auto zero) {
    using X = decltype(zero);
    launch_rows<X>(o, kernel_of(std::integral_constant<int, 16 / sizeof(X)>{}, zero),
                   kernel_of(std::integral_constant<int, 1>{}, zero));
  });
}

}  // namespace

void gelu(const Tensor& x, const Tensor& y) {
  launch_activation("gelu", {.x = x, .z = {}, .dy = {}, .y = y, .dx = {}, .dz = {}},
                    [](auto V, auto zero) { return gelu_forward_kernel<V, decltype(zero)>; });
}

void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) {
  launch_activation("gelu_backward", {.x = x, .z = {}, .dy = dy, .y = {}, .dx = dx, .dz = {}},
                    [](auto V, auto zero) { return gelu_backward_kernel<V, decltype(zero)>; });
}

void gated_silu(const Tensor& x, const Tensor& z, const Tensor& y) {
  launch_activation("gated_silu", {.x = x, .z = z, .dy = {}, .y = y, .dx = {}, .dz = {}},
                    [](auto V, auto zero) { return gated_silu_forward_kernel<V, decltype(zero)>; });
}

void gated_silu_backward(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& dx,
                         const Tensor& dz) {
  launch_activation("gated_silu_backward", {.x = x, .z = z, .dy = dy, .y = {}, .dx = dx, .dz = dz},
                    [](auto V, auto zero) { return gated_silu_backward_kernel<V, decltype(zero)>; });
}

}  // namespace ssm::cuda
