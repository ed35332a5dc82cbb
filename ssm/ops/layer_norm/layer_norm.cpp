#include "ssm/ops/layer_norm/layer_norm.h"

#include "ssm/ops/check.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/gradient.h"
#include "ssm/ops/layer_norm/layer_norm_cpu.h"

namespace ssm {
namespace {

void check_operands(std::string_view op, const Tensor& x, const Tensor& weight) {
  SSM_CHECK(x.defined() && x.rank() == 2 && x.size(1) >= 1, "{}: x has shape {}, expected [T, M]", op,
            x.shape());
  SSM_CHECK(!x.device().is_cuda(), "{}: it does not run on a card yet", op);
  check_first(op, "x", x, x.shape());
  check_parameter(op, "weight", weight, {x.size(1)}, x);
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) {
  check_operands("layer_norm", x, weight);
  check_parameter("layer_norm", "bias", bias, {x.size(1)}, x);
  Tensor y = Tensor::empty(x.shape());
  cpu::layer_norm(x, weight, bias, eps, y);
  if (!records(x, weight, bias)) return y;
  return record(std::move(y), [x, weight, bias, eps](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    layer_norm_backward(x, weight, eps, dy,
                        {.dx = dx.tensor(), .dweight = gradient_sum(weight), .dbias = gradient_sum(bias)});
  });
}

Tensor add_layer_norm(const Tensor& x, Tensor& residual, const Tensor& weight, const Tensor& bias,
                      float eps) {
  residual = records(x, residual) ? sum(residual, x) : add_scaled(residual, x, 1.0f);
  return layer_norm(residual, weight, bias, eps);
}

void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const LayerNormGrads& grads) {
  constexpr std::string_view kOp = "layer_norm_backward";
  check_operands(kOp, x, weight);
  check_activation(kOp, "dy", dy, x.shape(), x);
  check_activation_gradient(kOp, "dx", grads.dx, x.shape(), x);
  check_parameter_gradient(kOp, "dweight", grads.dweight, {x.size(1)}, x);
  check_parameter_gradient(kOp, "dbias", grads.dbias, {x.size(1)}, x);
  cpu::layer_norm_backward(x, weight, eps, dy, grads);
}

}  // namespace ssm
