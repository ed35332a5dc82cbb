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

}  // namespace

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
