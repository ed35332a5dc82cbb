#include "ssm/ops/causal_conv1d/causal_conv1d.h"

#include "ssm/ops/causal_conv1d/causal_conv1d_cpu.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_cuda.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"

namespace ssm {

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                     const SequenceBatch& batch, const Tensor& state) {
  constexpr std::string_view op = "causal_conv1d";
  SSM_CHECK(weight.defined() && weight.rank() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1,
            "{}: weight has shape {}, expected [C, K]", op, weight.shape());
  SSM_CHECK(weight.dtype() == DType::f32, "{}: weight is {}, expected f32", op, name_of(weight.dtype()));
  const int64_t C = weight.size(0), K = weight.size(1);
  check_first(op, "x", x, {batch.total(), C});
  SSM_CHECK(weight.device() == x.device(), "{}: weight is on {}, x on {}", op, name_of(weight.device()),
            name_of(x.device()));
  if (bias.defined()) check_parameter(op, "bias", bias, {C}, x);
  check_state(op, state, batch, {K - 1, C}, x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  SSM_DISPATCH(x.device(), causal_conv1d(x, weight, bias, activation, batch, state, y));
  return y;
}

}  // namespace ssm
