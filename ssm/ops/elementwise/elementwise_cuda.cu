#include <algorithm>
#include <utility>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/philox.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/elementwise/dropout_threshold.h"
#include "ssm/ops/elementwise/elementwise_cuda.h"

namespace ssm::cuda {
namespace {

__global__ void negative_exp_kernel(const float* x, float* y, int64_t n) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = -expf(x[i]);
}

// Rows of y and x [rows, width], a thread for each of some items of a row.
template <class T>
struct RowsArgs {
  const T* x;
  T* y;
  int64_t x_stride, y_stride, rows, width;
};

template <int V, class T>
__global__ void add_scaled_kernel(RowsArgs<T> args, float scale) {
  let_next_start();
  grid_dependency_wait();
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * V;
  if (i >= args.width) return;
  for (int64_t t = blockIdx.y; t < args.rows; t += gridDim.y) {
    T* const at = args.y + t * args.y_stride + i;
    float y[V], x[V];
    load<V>(y, at);
    load<V>(x, args.x + t * args.x_stride + i);
#pragma unroll
    for (int j = 0; j < V; ++j) y[j] += scale * x[j];
    store<V>(at, y);
  }
}

// y[i] = x[places[i]], or the other way round.
template <class T, bool kPut>
__global__ void move_rows_kernel(RowsArgs<T> args, const int32_t* places) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= args.width) return;
  for (int64_t t = blockIdx.y; t < args.rows; t += gridDim.y) {
    const T* const x = args.x + (kPut ? t : int64_t{places[t]}) * args.x_stride;
    T* const y = args.y + (kPut ? int64_t{places[t]} : t) * args.y_stride;
    y[i] = x[i];
  }
}

template <class T>
__global__ void dropout_kernel(RowsArgs<T> args, uint32_t below, float scale, uint64_t seed) {
  grid_dependency_wait();
  let_next_start();
  const int64_t fours = (args.width + 3) / 4, four = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (four >= fours) return;
  for (int64_t t = blockIdx.y; t < args.rows; t += gridDim.y) {
    const uint4 draw = philox4x32(seed, 0, static_cast<uint64_t>(t * fours + four));
    const uint32_t draws[4] = {draw.x, draw.y, draw.z, draw.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t i = four * 4 + j;
      if (i >= args.width) break;
      const float x = to_f32(args.x[t * args.x_stride + i]);
      args.y[t * args.y_stride + i] = from_f32<T>(draws[j] < below ? 0.0f : x * scale);
    }
  }
}

__global__ void move_average_kernel(float* average, const float* value, int64_t n, float weight) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) average[i] += (value[i] - average[i]) * weight;
}

Launch by_rows(int64_t rows, int64_t items) {
  constexpr int64_t kThreads = 256, kMostRows = 32768;
  return {.grid = dim3(static_cast<unsigned>((items + kThreads - 1) / kThreads),
                       static_cast<unsigned>(std::min(rows, kMostRows))),
          .block = dim3(kThreads),
          .overlaps_previous = true};
}

template <class T>
RowsArgs<T> rows_of(const Tensor& x, const Tensor& y) {
  return {reinterpret_cast<const T*>(x.raw()),
          reinterpret_cast<T*>(y.raw()),
          x.stride(0),
          y.stride(0),
          y.size(0),
          y.size(1)};
}

struct MatrixStrides {
  int64_t row, column;
};

// dx += y dy of [rows, columns], where each lies as it may.
__global__ void negative_exp_backward_kernel(const float* y, MatrixStrides of_y, const float* dy,
                                             MatrixStrides of_dy, float* dx, MatrixStrides of_dx,
                                             int64_t columns, int64_t n) {
  grid_dependency_wait();
  let_next_start();
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= n) return;
  const int64_t i = at / columns, j = at % columns;
  dx[i * of_dx.row + j * of_dx.column] +=
      y[i * of_y.row + j * of_y.column] * dy[i * of_dy.row + j * of_dy.column];
}

}  // namespace

void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx) {
  const int64_t n = y.numel();
  constexpr int64_t kThreads = 256;
  if (n == 0) return;
  const auto strides = [](const Tensor& t) {
    return MatrixStrides{t.stride(0), t.rank() == 2 ? t.stride(1) : 0};
  };
  launch({.grid = dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         negative_exp_backward_kernel, y.data<float>(), strides(y), dy.data<float>(), strides(dy),
         dx.data<float>(), strides(dx), y.rank() == 2 ? y.size(1) : 1, n);
}

void negative_exp(const Tensor& x, const Tensor& y) {
  const int64_t n = x.numel();
  constexpr int64_t kThreads = 256;
  if (n == 0) return;
  launch({.grid = dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         negative_exp_kernel, x.data<float>(), y.data<float>(), n);
}

void add_scaled(const Tensor& y, const Tensor& x, float scale) {
  if (y.numel() == 0) return;
  dispatch(y.dtype(), "add_scaled", [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    RowsArgs<T> rows = rows_of<T>(x, y);
    if (x.contiguous() && y.contiguous()) rows.width *= std::exchange(rows.rows, 1);
    const auto allows = [&](const Tensor& t) {
      return (rows.rows == 1 || is_multiple(t.stride(0), V)) && is_aligned(t.raw());
    };
    if (is_multiple(rows.width, V) && allows(x) && allows(y))
      launch(by_rows(rows.rows, rows.width / V), add_scaled_kernel<V, T>, rows, scale);
    else
      launch(by_rows(rows.rows, rows.width), add_scaled_kernel<1, T>, rows, scale);
  });
}

void move_average(const Tensor& average, const Tensor& value, float weight) {
  const int64_t n = value.numel();
  constexpr int64_t kThreads = 256;
  if (n == 0) return;
  launch({.grid = dim3(static_cast<unsigned>((n + kThreads - 1) / kThreads)),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         move_average_kernel, average.data<float>(), value.data<float>(), n, weight);
}

void take_rows(const Tensor& x, const Tensor& places, const Tensor& y) {
  if (y.numel() == 0) return;
  dispatch(y.dtype(), "take_rows", [&](auto zero) {
    using T = decltype(zero);
    launch(by_rows(y.size(0), y.size(1)), move_rows_kernel<T, false>, rows_of<T>(x, y),
           places.data<int32_t>());
  });
}

void put_rows(const Tensor& y, const Tensor& places, const Tensor& x) {
  if (y.numel() == 0) return;
  dispatch(y.dtype(), "take_rows", [&](auto zero) {
    using T = decltype(zero);
    RowsArgs<T> args = rows_of<T>(y, x);
    args.rows = y.size(0);
    launch(by_rows(y.size(0), y.size(1)), move_rows_kernel<T, true>, args, places.data<int32_t>());
  });
}

void dropout(const Tensor& x, float p, uint64_t seed, const Tensor& y) {
  if (y.numel() == 0) return;
  dispatch(y.dtype(), "dropout", [&](auto zero) {
    using T = decltype(zero);
    launch(by_rows(y.size(0), (y.size(1) + 3) / 4), dropout_kernel<T>, rows_of<T>(x, y), dropout_threshold(p),
           1.0f / (1.0f - p), seed);
  });
}

}  // namespace ssm::cuda
