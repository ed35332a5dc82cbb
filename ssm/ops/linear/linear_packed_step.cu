// The products of a decode step with packed weights.
#include "ssm/ops/linear/linear_packed_cuda.h"
#include "ssm/ops/linear/linear_packed_rows.cuh"
#include "ssm/ops/linear/linear_step.cuh"

namespace ssm::cuda {
namespace {

// Of x of type X, which may be normed as an Input.
template <class X, class Input, class Epilogue>
void launch_step(const StepRows& x, const QuantizedTensor& w, DType dtype, const Epilogue& epilogue) {
  const PackedRowsArgs a = args_of(x.x.size(0), matrix_of(w));
  const auto launch_from = [&](const auto& source) {
    dispatch_common_format(card_format(w.format),
                           [&](auto as) { launch_packed_rows<X, decltype(as), 1>(a, source, epilogue); });
  };
  if constexpr (sizeof(X) == 2) {
    if (stages(x, dtype) && a.T * a.K * sizeof(X) <= kPackedStaged) {
      return launch_from(Normed<X, Input>{input_of<X>(x, static_cast<Input*>(nullptr)),
                                          x.norm_weight.data<float>(), x.eps, static_cast<int>(x.groups)});
    }
  }
  const Tensor rows = normed(x, dtype);
  launch_from(in_memory<X>(rows));
}

}  // namespace

bool has_packed_step(const QuantizedTensor& w) {
  return w.shape[1] % 8 == 0 && dispatch_common_format(card_format(w.format), [](auto) {});
}

void packed_conv_step(const StepRows& x, const QuantizedTensor& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y) {
  dispatch(y.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_step<X, Residual>(x, w, y.dtype(), convolved_of<X>(conv, bias, y));
  });
}

void packed_add_step(const StepRows& x, const QuantizedTensor& w, const Tensor& bias,
                     const Tensor& residual) {
  dispatch(x.x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    launch_step<X, Gated<X>>(x, w, x.x.dtype(), added_to(residual, bias));
  });
}

}  // namespace ssm::cuda
