#include "ssm/ops/cuda/gather.cuh"
#include "ssm/ops/elementwise/elementwise_cuda.h"

namespace ssm::cuda {
namespace {

__global__ void negative_exp_kernel(const float* x, float* y, int64_t n) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < n) y[i] = -expf(x[i]);
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

void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) {
  const GatherArgs args{.x = x.raw(),
                        .rows = rows.raw(),
                        .y = y.raw(),
                        .x_rows = x.size(0),
                        .x_stride = x.stride(0),
                        .width = x.size(1),
                        .count = rows.size(0),
                        .wide = rows.dtype() == DType::i64};
  dispatch(x.dtype(), "gather_rows", [&](auto zero) { gather<decltype(zero), decltype(zero)>(args); });
}

}  // namespace ssm::cuda
