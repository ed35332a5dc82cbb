// A channel's window of a causal convolution of width 4 at a decode step, and the filter over it.
#pragma once

#include "ssm/ops/cuda/math.cuh"

namespace ssm::cuda {

struct Window {
  static constexpr int kWidth = 4;
  float inputs[kWidth], weights[kWidth], bias;

  // weight [C, kWidth] at channel c, bias [C] or null.
  __device__ __forceinline__ void read_filter(const float* weight, int64_t stride_c, int64_t stride_k,
                                              const float* biases, int c) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weights[k] = weight[c * stride_c + k * stride_k];
    bias = biases ? biases[c] : 0.0f;
  }
  // `state` is the channel's column of [kWidth - 1, channels].
  __device__ __forceinline__ void read_inputs(const float* state, int channels, float newest) {
#pragma unroll
    for (int k = 0; k + 1 < kWidth; ++k) inputs[k] = state[int64_t{k} * channels];
    inputs[kWidth - 1] = newest;
  }
  __device__ __forceinline__ float convolved() const {
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += weights[k] * inputs[k];
    return silu(sum);
  }
  // The window's last inputs become the state.
  __device__ __forceinline__ void move_on(float* state, int channels) const {
#pragma unroll
    for (int k = 0; k + 1 < kWidth; ++k) state[int64_t{k} * channels] = inputs[k + 1];
  }
};

}  // namespace ssm::cuda
