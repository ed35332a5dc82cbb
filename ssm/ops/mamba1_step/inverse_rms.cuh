// The norm without weights that FalconMamba puts before dt, B and C.
#pragma once

#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

// The inverse of the root mean square of n values, by one warp.
template <class X>
__device__ __forceinline__ float inverse_rms(const X* row, int n, float eps) {
  float square = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) square += to_f32(row[i]) * to_f32(row[i]);
  return rsqrtf(warp_sum(square) / static_cast<float>(n) + eps);
}

}  // namespace ssm::cuda
