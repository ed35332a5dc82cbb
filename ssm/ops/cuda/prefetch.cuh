// Bringing what a later kernel will read into L2, while memory would idle.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ssm/core/tensor.h"

namespace ssm::cuda {

struct Ahead {
  const char* from;
  int64_t bytes;
};

// A matrix that kernels never write, or undefined: as much of it as L2 may be asked to hold beside the rest.
inline Ahead ahead_of(const Tensor& w) {
  constexpr int64_t kMost = 16 << 20;
  if (!w.defined()) return {nullptr, 0};
  return {reinterpret_cast<const char*>(w.raw()),
          std::min(kMost, w.size(0) * w.stride(0) * static_cast<int64_t>(size_of(w.dtype())))};
}

// All threads of the grid call it.
__device__ __forceinline__ void ask_ahead(const Ahead& ahead) {
  constexpr int64_t kLine = 128;
  const int64_t block = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  const int64_t threads = int64_t{gridDim.x} * gridDim.y * blockDim.x;
  for (int64_t at = (block * blockDim.x + threadIdx.x) * kLine; at < ahead.bytes; at += threads * kLine) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(ahead.from + at));
  }
}

}  // namespace ssm::cuda
