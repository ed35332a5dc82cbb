// The products of a decode step: norms before them, a convolution's step or the residual after them.
#include <type_traits>

#include "ssm/ops/cuda/window.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

// Up to here every block norms the rows for itself: that costs less than a kernel of its own.
constexpr int64_t kStagedRows = 1;
constexpr int64_t kStagedBytes = 44 << 10;  // of shared memory

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

bool in_quads(const Tensor& t) {
  return !t.defined() || (reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.stride(0) % kQuad == 0);
}

// Whether each block is to norm the rows for itself.
bool stages(const StepRows& x, const Tensor& w) {
  const int64_t T = x.x.size(0), K = w.size(1);
  return x.norm_weight.defined() && T <= kStagedRows &&
         T * K * static_cast<int64_t>(size_of(w.dtype())) <= kStagedBytes && K / x.groups % kQuad == 0 &&
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
Tensor normed(const StepRows& x, const Tensor& w) {
  if (!x.norm_weight.defined()) return x.x;
  const Tensor y = Tensor::empty(x.x.shape(), w.dtype(), w.device());
  x.gate.defined() ? gated_rms_norm(x.x, x.gate, x.norm_weight, x.groups, x.eps, y)
                   : rms_norm(x.x, x.norm_weight, x.eps, y);
  return y;
}

// Of x of type X, which may be normed as an Input.
template <class X, class Input, class Epilogue>
void launch_step(const StepRows& x, const Tensor& w, const Epilogue& epilogue) {
  const RowsArgs a = args_of(x.x.size(0), w);
  const bool is_short = a.K <= kShort * kStep<X>;
  if constexpr (sizeof(X) == 2) {
    if (stages(x, w)) {
      const Normed<X, Input> source{input_of<X>(x, static_cast<Input*>(nullptr)), x.norm_weight.data<float>(),
                                    x.eps, static_cast<int>(x.groups)};
      // Wide strips make the rows less often; where W has few of them, narrow ones fill the card.
      if (is_short) return launch_rows<X, 8, 1, 6, 8, 3>(a, source, epilogue);
      if (a.N > 2 * a.K) return launch_rows<X, 8, 2, 5, 8, 2>(a, source, epilogue);
      return launch_rows<X, 8, 1, 10, 8, 3>(a, source, epilogue);
    }
  }
  const Tensor rows = normed(x, w);
  if constexpr (sizeof(X) == 2 && std::is_same_v<Epilogue, Added>) {
    // All strips of an out-projection are then on the card at once.
    if (!is_short && a.T <= kStagedRows) {
      return launch_rows<X, 8, 1, 10, 8, 3>(a, in_memory<X>(rows), epilogue);
    }
  }
  launch_eight_rows<X>(a, in_memory<X>(rows), epilogue);
}

void check_step(const StepRows& x, const Tensor& w, bool gated) {
  SSM_CHECK(has_linear_step(x.x.size(0), w) && (x.norm_weight.defined() || in_packs(x.x)) &&
                x.gate.defined() == (gated && x.norm_weight.defined()),
            "linear_step: x {}, weight {}", x.x.shape(), w.shape());
}

}  // namespace

bool has_linear_step(int64_t T, const Tensor& w) { return T <= 8 && in_packs(w) && w.size(1) < (1 << 30); }

void linear_conv_step(const StepRows& x, const Tensor& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y) {
  check_step(x, w, false);
  dispatch(w.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    const Convolved<X> epilogue{.plain = plain_of<X>(bias, y),
                                .weight = conv.weight.data<float>(),
                                .bias = conv.bias.defined() ? conv.bias.data<float>() : nullptr,
                                .state = conv.state.data<float>(),
                                .slots = conv.slots,
                                .stride_c = conv.weight.stride(0),
                                .stride_k = conv.weight.stride(1),
                                .first = static_cast<int>(conv.first),
                                .channels = static_cast<int>(conv.weight.size(0))};
    launch_step<X, Residual>(x, w, epilogue);
  });
}

void linear_add_step(const StepRows& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  check_step(x, w, true);
  const Added epilogue{bias.defined() ? bias.data<float>() : nullptr, residual.data<float>(),
                       residual.stride(0)};
  dispatch(w.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_step<X, Gated<X>>(x, w, epilogue);
  });
}

}  // namespace ssm::cuda
