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

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp_fast(-x)); }

// x * sigmoid(x); for very negative x the division of 1 by infinity gives 0.
__device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x), accurate for very negative x too.
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(__expf(x)); }

}  // namespace ssm::cuda
