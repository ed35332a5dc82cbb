// f32 functions of the ops, from the special-function unit where its error (2 ulp of ex2, docs/numerics.md)
// is below what the ops promise.
#pragma once

namespace ssm::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

// 2^x by the special-function unit; denormal results are flushed to zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float exp_fast(float x) { return exp2_fast(x * kLog2e); }

// 1 / x by the special-function unit, within 1 ulp; 0 for infinity.
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal_fast(1.0f + exp_fast(-x)); }

// x * sigmoid(x); for very negative x the reciprocal of infinity gives 0.
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), relative error 5e-7 for very negative x too. The polynomial
// is the Chebyshev series of log(1 + p) / p on [0, 1] (2e-7).
__device__ __forceinline__ float softplus(float x) {
  const float p = exp2_fast(-kLog2e * fabsf(x));
  float q = fmaf(-8.574676204e-03f, p, 4.421419234e-02f);
  q = fmaf(q, p, -1.078536792e-01f);
  q = fmaf(q, p, 1.775702399e-01f);
  q = fmaf(q, p, -2.449961172e-01f);
  q = fmaf(q, p, 3.327617657e-01f);
  q = fmaf(q, p, -4.999744938e-01f);
  q = fmaf(q, p, 9.999998102e-01f);
  return fmaf(q, p, fmaxf(x, 0.0f));
}

}  // namespace ssm::cuda
