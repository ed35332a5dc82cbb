#include "ssm/ops/linear/linear_rows.cuh"

#include "ssm/ops/cuda/window.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

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
    plain.put(t, n, held.window.convolved());
  }
};

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
      if (T > 16) return launch_rows<X, 32, 1, 10, 16>(a, plain);
      if (T > 8) return launch_rows<X, 16, 1, 10, 16>(a, plain);
    }
    launch_eight_rows<X>(a, plain);
  });
  return true;
}

}  // namespace ssm::cuda
