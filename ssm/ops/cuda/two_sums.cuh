// What the backwards of the norms need of a row.
#pragma once

#include "ssm/ops/cuda/reduce.cuh"

namespace ssm::cuda {

// Two sums over a block at once; `scratch` may be used again after the next barrier.
__device__ __forceinline__ float2 block_sums(float a, float b, float2* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  a = warp_sum(a), b = warp_sum(b);
  if (lane == 0) scratch[warp] = make_float2(a, b);
  __syncthreads();
  const float2 mine = lane < warps ? scratch[lane] : make_float2(0, 0);
  return make_float2(warp_sum(mine.x), warp_sum(mine.y));
}

}  // namespace ssm::cuda
