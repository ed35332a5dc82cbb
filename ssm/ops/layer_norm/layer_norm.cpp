#include "ssm/ops/layer_norm/layer_norm.h"

#include <utility>

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"
#include "ssm/ops/layer_norm/layer_norm_cpu.h"
#include "ssm/ops/layer_norm/layer_norm_cuda.h"

namespace ssm {
namespace {

void check_operands(std::string_view op, const Tensor& x, const Tensor& weight) {
  SSM_CHECK(x.defined() && x.rank() == 2 && x.size(1) >= 1, "{}: x has shape {}, expected [T, M]", op,
            x.shape());
  check_first(op, "x", x, x.shape());
  check_parameter(op, "weight", weight, {x.size(1)}, x);
}

Tensor like(std::string_view op, const Tensor& x, std::optional<DType> result) {
  const DType dtype = result.value_or(x.dtype());
  check_result(op, dtype, x.device());
  return Tensor::empty(x.shape(), dtype, x.device());
}

// An activation of the shape and the device of x, of a type of its own.
void check_beside(std::string_view op, std::string_view name, const Tensor& t, const Tensor& x) {
  check_first(op, name, t, x.shape());
  SSM_CHECK(t.device() == x.device(), "{}: {} is on {}, x on {}", op, name, name_of(t.device()),
            name_of(x.device()));
}

// What both backwards share.
void check_backward(std::string_view op, const Tensor& x, const Tensor& weight, const Tensor& dy,
                    const LayerNormGrads& grads) {
  check_operands(op, x, weight);
  check_beside(op, "dy", dy, x);
  if (grads.dweight.defined()) check_parameter(op, "dweight", grads.dweight, {x.size(1)}, x);
  if (grads.dbias.defined()) check_parameter(op, "dbias", grads.dbias, {x.size(1)}, x);
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                  std::optional<DType> result) {
  check_operands("layer_norm", x, weight);
  check_parameter("layer_norm", "bias", bias, {x.size(1)}, x);
  Tensor y = like("layer_norm", x, result);
  SSM_DISPATCH(x.device(), layer_norm(x, weight, bias, eps, y));
  if (!records(x, weight, bias)) return y;
  return record(std::move(y), [x, weight, bias, eps](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    layer_norm_backward(x, weight, eps, dy,
                        {.dx = dx.tensor(), .dweight = gradient_sum(weight), .dbias = gradient_sum(bias)});
  });
}

Tensor add_layer_norm(const Tensor& x, Tensor& residual, const Tensor& weight, const Tensor& bias, float eps,
                      std::optional<DType> result) {
  check_operands("add_layer_norm", x, weight);
  check_parameter("add_layer_norm", "bias", bias, {x.size(1)}, x);
  check_parameter("add_layer_norm", "residual", residual, x.shape(), x);
  Tensor y = like("add_layer_norm", x, result);
  if (!records(x, residual, weight, bias)) {
    SSM_DISPATCH(x.device(), add_layer_norm(x, residual, residual, weight, bias, eps, y));
    return y;
  }
  const Tensor before =
      std::exchange(residual, Tensor::empty(residual.shape(), residual.dtype(), residual.device()));
  SSM_DISPATCH(x.device(), add_layer_norm(x, before, residual, weight, bias, eps, y));
  record_residual_norm(
      x, before, residual, y,
      [residual, weight, bias, eps](const Tensor& dy, const Tensor& dresidual, const Tensor& dx) {
        add_layer_norm_backward(residual, weight, eps, dy, dresidual,
                                {.dx = dx, .dweight = gradient_sum(weight), .dbias = gradient_sum(bias)});
      });
  return y;
}

std::pair<Tensor, Tensor> layer_norms(const Tensor& x, Tensor& residual, const LayerNormParameters& first,
                                      const LayerNormParameters& second, std::optional<DType> result) {
  constexpr std::string_view kOp = "layer_norms";
  if (records(x, residual, first.weight, first.bias, second.weight, second.bias)) {
    Tensor y = x.defined() ? add_layer_norm(x, residual, first.weight, first.bias, first.eps, result)
                           : layer_norm(residual, first.weight, first.bias, first.eps, result);
    return {std::move(y), layer_norm(residual, second.weight, second.bias, second.eps, result)};
  }
  const Tensor& normed = x.defined() ? x : residual;
  for (const LayerNormParameters* norm : {&first, &second}) {
    check_operands(kOp, normed, norm->weight);
    check_parameter(kOp, "bias", norm->bias, {normed.size(1)}, normed);
  }
  check_parameter(kOp, "residual", residual, normed.shape(), normed);
  std::pair<Tensor, Tensor> y(like(kOp, normed, result), like(kOp, normed, result));
  SSM_DISPATCH(normed.device(), layer_norms(x, residual, first, second, y.first, y.second));
  return y;
}

void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const LayerNormGrads& grads) {
  constexpr std::string_view kOp = "layer_norm_backward";
  check_backward(kOp, x, weight, dy, grads);
  check_activation_gradient(kOp, "dx", grads.dx, x.shape(), x);
  SSM_DISPATCH(x.device(), layer_norm_backward(x, weight, eps, dy, {}, grads));
}

void add_layer_norm_backward(const Tensor& residual, const Tensor& weight, float eps, const Tensor& dy,
                             const Tensor& dresidual, const LayerNormGrads& grads) {
  constexpr std::string_view kOp = "add_layer_norm_backward";
  check_backward(kOp, residual, weight, dy, grads);
  check_parameter(kOp, "residual", residual, residual.shape(), residual);
  check_parameter(kOp, "dresidual", dresidual, residual.shape(), residual);
  if (grads.dx.defined()) check_beside(kOp, "dx", grads.dx, residual);
  SSM_DISPATCH(residual.device(), layer_norm_backward(residual, weight, eps, dy, dresidual, grads));
}

}  // namespace ssm
