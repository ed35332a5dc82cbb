#include "ssm/ops/embedding/embedding_cuda.h"

#include "ssm/ops/cuda/gather.cuh"
#include "ssm/ops/cuda/packed.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of packed weights are few beside what a model does with them: weight by weight.
__global__ void __launch_bounds__(kThreads)
    packed_embedding_kernel(const PackedMatrix table, const CardFormat format, const int32_t* ids, float* y) {
  grid_dependency_wait();
  let_next_start();
  const int64_t t = blockIdx.x, id = ids[t];
  const bool inside = id >= 0 && id < table.N;
  for (int64_t m = int64_t{blockIdx.y} * kThreads + threadIdx.x; m < table.K;
       m += int64_t{gridDim.y} * kThreads) {
    y[t * table.K + m] =
        inside ? packed_weight(table, format, id, m) : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace

void embedding(const Tensor& ids, const QuantizedTensor& table, const Tensor& y) {
  if (y.numel() == 0) return;
  const int64_t blocks = std::min<int64_t>((y.size(1) + kThreads - 1) / kThreads, 1024);
  launch({.grid = dim3(static_cast<unsigned>(ids.size(0)), static_cast<unsigned>(blocks)),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         packed_embedding_kernel, matrix_of(table), card_format(table.format), ids.data<int32_t>(),
         y.data<float>());
}

void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) {
  const GatherArgs args{.x = table.raw(),
                        .rows = ids.raw(),
                        .y = y.raw(),
                        .x_rows = table.size(0),
                        .x_stride = table.size(1),
                        .width = table.size(1),
                        .count = ids.size(0),
                        .wide = false};
  dispatch(table.dtype(), "embedding", [&](auto zero) { gather<decltype(zero), float>(args); });
}

}  // namespace ssm::cuda
