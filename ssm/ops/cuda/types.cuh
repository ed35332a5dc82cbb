// Element types in kernels, and loads and stores of a few of them at a time. Arithmetic is f32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ssm/core/dtype.h"

namespace ssm::cuda {

template <class T>
struct DeviceTypeOf {
  using type = T;
};
template <>
struct DeviceTypeOf<BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceTypeOf<Float16> {
  using type = __half;
};

// dispatch(dtype, "op", [&](auto zero) { using T = decltype(zero); ... }): T is float, __nv_bfloat16 or
// __half.
template <class F>
void dispatch(DType dtype, std::string_view op, F&& f) {
  dispatch_float(dtype, op, [&](auto zero) { f(typename DeviceTypeOf<decltype(zero)>::type{}); });
}

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_f32<__half>(float x) {
  return __float2half_rn(x);
}

// N elements moved as one access: the address must be a multiple of N * sizeof(T), at most 16 bytes.
// As a value it is what was read, not yet widened: under a condition, a widening behind each load would wait
// for it before the next load starts.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void widen(float (&to)[N], const Pack<T, N>& pack) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_f32(pack.values[i]);
}

template <int N, class T>
__device__ __forceinline__ void load(float (&to)[N], const T* from) {
  widen<N>(to, load_pack<N>(from));
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = from_f32<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace ssm::cuda
