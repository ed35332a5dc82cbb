// The normal distribution, of which gelu is made (activation.h).
#pragma once

#include "ssm/ops/cuda/math.cuh"

namespace ssm::cuda {

// 1 - erf(z) for z >= 0, to 1.2e-7 of itself and what exp adds (Press et al., Numerical Recipes, "erfcc").
__device__ __forceinline__ float erfc_fast(float z) {
  const float t = reciprocal_fast(fmaf(0.5f, z, 1.0f));
  float p = fmaf(0.17087277f, t, -0.82215223f);
  p = fmaf(p, t, 1.48851587f);
  p = fmaf(p, t, -1.13520398f);
  p = fmaf(p, t, 0.27886807f);
  p = fmaf(p, t, -0.18628806f);
  p = fmaf(p, t, 0.09678418f);
  p = fmaf(p, t, 0.37409196f);
  p = fmaf(p, t, 1.00002368f);
  p = fmaf(p, t, -1.26551223f);
  return t * exp_fast(fmaf(-z, z, p));
}

// Phi(x) = erfc(-x / sqrt(2)) / 2.
__device__ __forceinline__ float normal_distribution(float x) {
  const float half = 0.5f * erfc_fast(fabsf(x) * 0.70710678118654752f);
  return x < 0.0f ? half : 1.0f - half;
}

__device__ __forceinline__ float gelu(float x) { return x * normal_distribution(x); }

}  // namespace ssm::cuda
