// What stands before and after the products of a decode step, whatever the weights: norms, and a
// convolution's step or the residual as epilogues of linear_rows_kernel.
#pragma once

#include "ssm/ops/cuda/window.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {

// Up to here every block norms the rows for itself: that costs less than a kernel of its own.
inline constexpr int64_t kStagedRows = 1;
inline constexpr int64_t kStagedBytes = 44 << 10;  // of shared memory

// Each of the columns that pass through the convolution has one owner, which moves its window on.
template <class X>
struct Convolved {
  Plain<X> plain;
  const float *weight, *bias;
  float* state;
  const int32_t* slots;
  int64_t stride_c, stride_k;
  int first, channels;
  struct Held {
    typename Plain<X>::Held plain;
    Window window;
    float* state;
  };
  __device__ __forceinline__ bool passes(int64_t n) const { return n >= first && n < first + channels; }
  __device__ __forceinline__ void read_parameters(Held& held, int t, int64_t n) const {
    plain.read_parameters(held.plain, t, n);
    if (passes(n)) held.window.read_filter(weight, stride_c, stride_k, bias, static_cast<int>(n - first));
  }
  __device__ __forceinline__ void read_inputs(Held& held, int t, int64_t n) const {
    if (!passes(n)) return;
    held.state = state + int64_t{slots[t]} * (Window::kWidth - 1) * channels + n - first;
    held.window.read_inputs(held.state, channels, 0.0f);
  }
  __device__ __forceinline__ void write(Held& held, int t, int64_t n, float sum) const {
    if (!passes(n)) return plain.write(held.plain, t, n, sum);
    held.window.inputs[Window::kWidth - 1] = to_f32(from_f32<X>(sum + held.plain.bias));
    held.window.move_on(held.state, channels);
    plain.put(t, n, held.window.convolved());
  }
};

struct Added {
  const float* bias;  // or null
  float* residual;
  int64_t stride;
  struct Held {
    float value;
  };
  __device__ __forceinline__ void read_parameters(Held&, int, int64_t) const {}
  __device__ __forceinline__ void read_inputs(Held& held, int t, int64_t n) const {
    held.value = residual[t * stride + n] + (bias ? bias[n] : 0.0f);
  }
  __device__ __forceinline__ void write(const Held& held, int t, int64_t n, float sum) const {
    residual[t * stride + n] = held.value + sum;
  }
};

template <class X>
Convolved<X> convolved_of(const ConvStep& conv, const Tensor& bias, const Tensor& y) {
  return {.plain = plain_of<X>(bias, y),
          .weight = conv.weight.data<float>(),
          .bias = conv.bias.defined() ? conv.bias.data<float>() : nullptr,
          .state = conv.state.data<float>(),
          .slots = conv.slots,
          .stride_c = conv.weight.stride(0),
          .stride_k = conv.weight.stride(1),
          .first = static_cast<int>(conv.first),
          .channels = static_cast<int>(conv.weight.size(0))};
}

inline Added added_to(const Tensor& residual, const Tensor& bias) {
  return {bias.defined() ? bias.data<float>() : nullptr, residual.data<float>(), residual.stride(0)};
}

inline bool in_quads(const Tensor& t) {
  return !t.defined() || (reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.stride(0) % kQuad == 0);
}

// Whether each block is to norm the rows, of what then is of `dtype`, for itself.
inline bool stages(const StepRows& x, DType dtype) {
  const int64_t T = x.x.size(0), K = x.x.size(1);
  return x.norm_weight.defined() && T <= kStagedRows &&
         T * K * static_cast<int64_t>(size_of(dtype)) <= kStagedBytes && K / x.groups % kQuad == 0 &&
         in_quads(x.x) && in_quads(x.gate) && reinterpret_cast<uintptr_t>(x.norm_weight.raw()) % 16 == 0;
}

template <class X>
Residual input_of(const StepRows& x, Residual*) {
  return {x.x.data<float>(), x.x.stride(0)};
}
template <class X>
Gated<X> input_of(const StepRows& x, Gated<X>*) {
  return {reinterpret_cast<const X*>(x.x.raw()), reinterpret_cast<const X*>(x.gate.raw()), x.x.stride(0),
          x.gate.stride(0)};
}

// The rows that are multiplied, by a kernel of their own.
inline Tensor normed(const StepRows& x, DType dtype) {
  if (!x.norm_weight.defined()) return x.x;
  const Tensor y = Tensor::empty(x.x.shape(), dtype, x.x.device());
  x.gate.defined() ? gated_rms_norm(x.x, x.gate, x.norm_weight, x.groups, x.eps, y)
                   : rms_norm(x.x, x.norm_weight, x.eps, y);
  return y;
}

}  // namespace ssm::cuda
