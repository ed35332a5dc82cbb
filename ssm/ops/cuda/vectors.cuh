// Several neighbouring elements at a time, also of types of which 16 bytes hold fewer, and when that may be.
#pragma once

#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

// V elements as they were read: in accesses of 16 bytes, or fewer where they fill none.
template <class T, int V>
struct Wide {
  static constexpr int kPart = V * sizeof(T) > 16 ? 16 / static_cast<int>(sizeof(T)) : V;
  Pack<T, kPart> parts[V / kPart];
};

template <int V, class T>
__device__ __forceinline__ Wide<T, V> load_wide(const T* from) {
  Wide<T, V> x;
#pragma unroll
  for (int i = 0; i < V / Wide<T, V>::kPart; ++i)
    x.parts[i] = load_pack<Wide<T, V>::kPart>(from + i * Wide<T, V>::kPart);
  return x;
}

template <int V, class T>
__device__ __forceinline__ void widen(float (&to)[V], const Wide<T, V>& x) {
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_f32(x.parts[i / Wide<T, V>::kPart].values[i % Wide<T, V>::kPart]);
}

template <int V, class T>
__device__ __forceinline__ void store_wide(T* to, const float (&from)[V]) {
  constexpr int kPart = Wide<T, V>::kPart;
#pragma unroll
  for (int i = 0; i < V; i += kPart) {
    float part[kPart];
#pragma unroll
    for (int j = 0; j < kPart; ++j) part[j] = from[i + j];
    store<kPart>(to + i, part);
  }
}

inline bool is_multiple(int64_t a, int64_t b) { return a % b == 0; }
inline bool is_aligned(const void* p, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace ssm::cuda
