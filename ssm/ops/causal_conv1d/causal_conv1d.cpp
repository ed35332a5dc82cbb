#include "ssm/ops/causal_conv1d/causal_conv1d.h"

#include "ssm/ops/causal_conv1d/causal_conv1d_cpu.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_cuda.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"

namespace ssm {
namespace {

constexpr std::string_view kOp = "causal_conv1d";

// The operands of the forward and of the backward.
void check_operands(const Tensor& x, const Tensor& weight, const Tensor& bias, const SequenceBatch& batch) {
  SSM_CHECK(weight.defined() && weight.rank() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1,
            "{}: weight has shape {}, expected [C, K]", kOp, weight.shape());
  SSM_CHECK(weight.dtype() == DType::f32, "{}: weight is {}, expected f32", kOp, name_of(weight.dtype()));
  const int64_t C = weight.size(0);
  check_first(kOp, "x", x, {batch.total(), C});
  SSM_CHECK(weight.device() == x.device(), "{}: weight is on {}, x on {}", kOp, name_of(weight.device()),
            name_of(x.device()));
  if (bias.defined()) check_parameter(kOp, "bias", bias, {C}, x);
}

}  // namespace

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                     const SequenceBatch& batch, const Tensor& state) {
  check_operands(x, weight, bias, batch);
  check_state(kOp, state, batch, {weight.size(1) - 1, weight.size(0)}, x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  const bool recorded = records(x, weight, bias);
  const Tensor initial = recorded ? initial_of(state, batch) : Tensor();
  SSM_DISPATCH(x.device(), causal_conv1d(x, weight, bias, activation, batch, state, y));
  if (!recorded) return y;
  return record(std::move(y), [x, weight, bias, activation, batch, initial](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    causal_conv1d_backward(x, weight, bias, activation, batch, initial, dy,
                           {.dx = dx.tensor(), .dweight = gradient_sum(weight), .dbias = gradient_sum(bias)});
  });
}

void causal_conv1d_backward(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                            const SequenceBatch& batch, const Tensor& initial, const Tensor& dy,
                            const CausalConv1dGrads& grads) {
  check_operands(x, weight, bias, batch);
  const int64_t C = weight.size(0), K = weight.size(1);
  check_initial(kOp, initial, batch, {K - 1, C}, x);
  check_activation(kOp, "dy", dy, x.shape(), x);
  check_activation_gradient(kOp, "dx", grads.dx, x.shape(), x);
  check_parameter_gradient(kOp, "dweight", grads.dweight, {C, K}, x);
  check_parameter_gradient(kOp, "dbias", grads.dbias, {C}, x);
  SSM_CHECK(bias.defined() || !grads.dbias.defined(), "{}: dbias of an absent bias", kOp);
  SSM_DISPATCH(x.device(), causal_conv1d_backward(x, weight, bias, activation, batch, initial, dy, grads));
}

}  // namespace ssm
