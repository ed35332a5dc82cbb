// The products of a decode step with dense weights: norms before them, a convolution's step or the residual
// after them.
#include "ssm/ops/linear/linear_step.cuh"

#include <type_traits>

#include "ssm/ops/linear/linear_packed_cuda.h"

namespace ssm::cuda {
namespace {

// Of x of type X, which may be normed as an Input.
template <class X, class Input, class Epilogue>
void launch_step(const StepRows& x, const Tensor& w, const Epilogue& epilogue) {
  const RowsArgs a = args_of(x.x.size(0), w);
  const bool is_short = a.K <= kShort * kStep<X>;
  if constexpr (sizeof(X) == 2) {
    if (stages(x, w.dtype())) {
      const Normed<X, Input> source{input_of<X>(x, static_cast<Input*>(nullptr)), x.norm_weight.data<float>(),
                                    x.eps, static_cast<int>(x.groups)};
      // Wide strips make the rows less often; where W has few of them, narrow ones fill the card.
      if (is_short) return launch_rows<X, 8, 1, 6, 8, 3>(a, source, epilogue);
      if (a.N > 2 * a.K) return launch_rows<X, 8, 2, 5, 8, 2>(a, source, epilogue);
      return launch_rows<X, 8, 1, 10, 8, 3>(a, source, epilogue);
    }
  }
  const Tensor rows = normed(x, w.dtype());
  if constexpr (sizeof(X) == 2 && std::is_same_v<Epilogue, Added>) {
    // All strips of an out-projection are then on the card at once, with at most two rounds of K each.
    if (!is_short && a.T <= kStagedRows && a.K <= 2 * 8 * 10 * kStep<X>) {
      return launch_rows<X, 8, 1, 10, 8, 3>(a, in_memory<X>(rows), epilogue);
    }
  }
  launch_eight_rows<X>(a, in_memory<X>(rows), epilogue);
}

void check_step(const StepRows& x, const Weight& w, bool gated) {
  SSM_CHECK(has_linear_step(x.x.size(0), w) && (x.norm_weight.defined() || in_packs(x.x)) &&
                x.gate.defined() == (gated && x.norm_weight.defined()),
            "linear_step: x {}, weight {}", x.x.shape(), shape_of(w));
}

}  // namespace

bool has_linear_step(int64_t T, const Weight& w) {
  const auto* packed = std::get_if<QuantizedTensor>(&w);
  if (T > kStepRows || shape_of(w)[1] >= (1 << 30)) return false;
  if (packed) return has_packed_step(*packed);
  return in_packs(std::get<Tensor>(w));
}

void linear_conv_step(const StepRows& x, const Weight& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y) {
  check_step(x, w, false);
  if (const auto* packed = std::get_if<QuantizedTensor>(&w))
    return packed_conv_step(x, *packed, bias, conv, y);
  dispatch(y.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_step<X, Residual>(x, std::get<Tensor>(w), convolved_of<X>(conv, bias, y));
  });
}

void linear_add_step(const StepRows& x, const Weight& w, const Tensor& bias, const Tensor& residual) {
  check_step(x, w, true);
  if (const auto* packed = std::get_if<QuantizedTensor>(&w))
    return packed_add_step(x, *packed, bias, residual);
  dispatch(x.x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_step<X, Gated<X>>(x, std::get<Tensor>(w), added_to(residual, bias));
  });
}

}  // namespace ssm::cuda
