// Rows of a matrix by index, as embedding reads them.
#pragma once

#include <limits>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/vectors.cuh"

namespace ssm::cuda {

struct GatherArgs {
  const void* x;     // [x_rows, width]
  const void* rows;  // [count], i64 where `wide`, else i32
  void* y;           // [count, width], contiguous
  int64_t x_rows, x_stride, width, count;
  bool wide;
};

// y[i] = x[rows[i]]; a row outside of x becomes NaN. A block holds blockDim.y rows of blockDim.x threads.
template <int V, class From, class To>
__global__ void gather_rows_kernel(const GatherArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= a.count) return;
  const int64_t row =
      a.wide ? static_cast<const int64_t*>(a.rows)[i] : static_cast<const int32_t*>(a.rows)[i];
  const bool inside = row >= 0 && row < a.x_rows;
  const From* from = static_cast<const From*>(a.x) + (inside ? row : 0) * a.x_stride;
  To* to = static_cast<To*>(a.y) + i * a.width;
  for (int64_t m = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V; m < a.width;
       m += int64_t{gridDim.y} * blockDim.x * V) {
    float values[V];
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = std::numeric_limits<float>::quiet_NaN();
    if (inside) load<V>(values, from + m);
    store<V>(to + m, values);
  }
}

template <class From, class To>
void gather(const GatherArgs& a) {
  if (a.count == 0 || a.width == 0) return;
  constexpr int V = 4, kThreads = 256;
  const bool vectors = is_multiple(a.width, V) && is_multiple(a.x_stride, V) &&
                       is_aligned(a.x, V * sizeof(From)) && is_aligned(a.y, V * sizeof(To));
  const int64_t packs = vectors ? a.width / V : a.width;
  unsigned across = 32;
  while (across < kThreads && across < packs) across *= 2;
  const unsigned down = kThreads / across;
  const int64_t blocks = (a.count + down - 1) / down, columns = (packs + across - 1) / across;
  launch(
      {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min<int64_t>(columns, 1024))),
       .block = dim3(across, down),
       .overlaps_previous = true},
      vectors ? gather_rows_kernel<V, From, To> : gather_rows_kernel<1, From, To>, a);
}

}  // namespace ssm::cuda
