#include "ssm/ops/embedding/embedding_cuda.h"

#include "ssm/ops/cuda/gather.cuh"

namespace ssm::cuda {

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
