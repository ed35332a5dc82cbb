#include "ssm/ops/linear/linear_rows.cuh"

#include "ssm/ops/cuda/window.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

#ifndef V_EIGHTS
#define V_EIGHTS 1
#define V_DEPTH 10
#endif

template <class X>
__device__ __forceinline__ void write_value(void* y, bool y_is_f32, int64_t at, float value) {
  if (y_is_f32) {
    static_cast<float*>(y)[at] = value;
  } else {
    static_cast<X*>(y)[at] = from_f32<X>(value);
  }
}

template <class X>
struct Plain {
  const float* bias;  // or null
  void* y;
  bool y_is_f32;
  int64_t y_stride;
  struct Held {
    float bias;
  };
  __device__ __forceinline__ void read_parameters(Held& held, int64_t n) const {
    held.bias = bias ? bias[n] : 0.0f;
  }
  __device__ __forceinline__ void read_inputs(Held&, int, int64_t) const {}
  __device__ __forceinline__ void write(const Held& held, int t, int64_t n, float sum) const {
    write_value<X>(y, y_is_f32, t * y_stride + n, sum + held.bias);
  }
};

// Columns [first, first + channels) pass through the step of a convolution; each has one owner, which moves
// its window on.
template <class X>
struct Convolved {
  Plain<X> plain;
  ConvStep conv;
  struct Held {
    typename Plain<X>::Held plain;
    Window window;
    float* state;
  };
  __device__ __forceinline__ bool passes(int64_t n) const {
    return n >= conv.first && n < conv.first + conv.channels;
  }
  __device__ __forceinline__ void read_parameters(Held& held, int64_t n) const {
    plain.read_parameters(held.plain, n);
    if (passes(n)) {
      held.window.read_filter(conv.weight, conv.stride_c, conv.stride_k, conv.bias,
                              static_cast<int>(n - conv.first));
    }
  }
  __device__ __forceinline__ void read_inputs(Held& held, int t, int64_t n) const {
    if (!passes(n)) return;
    held.state = conv.state + int64_t{conv.slots[t]} * (Window::kWidth - 1) * conv.channels + n - conv.first;
    held.window.read_inputs(held.state, conv.channels, 0.0f);
  }
  __device__ __forceinline__ void write(Held& held, int t, int64_t n, float sum) const {
    if (!passes(n)) return plain.write(held.plain, t, n, sum);
    held.window.inputs[Window::kWidth - 1] = to_f32(from_f32<X>(sum + held.plain.bias));
    held.window.move_on(held.state, conv.channels);
    write_value<X>(plain.y, plain.y_is_f32, t * plain.y_stride + n, held.window.convolved());
  }
};

bool in_packs(const Tensor& t) {
  const int64_t bytes = static_cast<int64_t>(size_of(t.dtype()));
  return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.size(1) * bytes % 16 == 0 &&
         (t.size(0) <= 1 || t.stride(0) * bytes % 16 == 0);
}

RowsArgs args_of(const Tensor& x, const Tensor& w) {
  return {.x = x.raw(),
          .w = w.raw(),
          .N = w.size(0),
          .x_stride = x.stride(0),
          .w_stride = w.stride(0),
          .T = static_cast<int>(x.size(0)),
          .K = static_cast<int>(w.size(1)),
          .part = 0};
}

template <class X>
Plain<X> plain_of(const Tensor& bias, const Tensor& y) {
  return {.bias = bias.defined() ? bias.data<float>() : nullptr,
          .y = y.raw(),
          .y_is_f32 = y.dtype() == DType::f32,
          .y_stride = y.stride(0)};
}

// Beyond these the library is faster (linear_cuda_bench): at 16 to 32 rows of a large matrix x, which every
// strip reads, is as much as W.
bool are_few(int64_t T, const Tensor& w) {
  if (T <= 8) return true;
  return w.dtype() != DType::f32 && (T <= 16 || (T <= 32 && w.numel() <= (4 << 20)));
}

}  // namespace

bool has_linear_conv_step(int64_t T, const Tensor& w) {
  return T <= 8 && in_packs(w) && w.size(1) < (1 << 30);
}

void linear_conv_step(const Tensor& x, const Tensor& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y) {
  SSM_CHECK(has_linear_conv_step(x.size(0), w) && in_packs(x), "linear_conv_step: x {}, weight {}", x.shape(),
            w.shape());
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_eight_rows<X>(args_of(x, w), Convolved<X>{plain_of<X>(bias, y), conv});
  });
}

bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const int64_t T = x.size(0);
  if (!are_few(T, w) || !in_packs(x) || !in_packs(w) || w.size(1) >= (1 << 30)) return false;
  const RowsArgs a = args_of(x, w);
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    const Plain<X> plain = plain_of<X>(bias, y);
    if constexpr (sizeof(X) == 2) {
      if (T > 16) return launch_rows<X, 32, V_EIGHTS, V_DEPTH, 16>(a, plain);
      if (T > 8) return launch_rows<X, 16, V_EIGHTS, V_DEPTH, 16>(a, plain);
    }
    launch_eight_rows<X>(a, plain);
  });
  return true;
}

}  // namespace ssm::cuda
