#include "ssm/ops/rms_norm/rms_norm.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/rms_norm/rms_norm_cpu.h"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm {
namespace {

void check_common(std::string_view op, const Tensor& x, const Tensor& weight) {
  SSM_CHECK(x.defined() && x.rank() == 2 && x.size(1) >= 1, "{}: x has shape {}, expected [T, M]", op,
            x.shape());
  check_first(op, "x", x, x.shape());
  if (weight.defined()) check_parameter(op, "weight", weight, {x.size(1)}, x);
}

Tensor like(std::string_view op, const Tensor& x, std::optional<DType> result) {
  const DType dtype = result.value_or(x.dtype());
  check_result(op, dtype, x.device());
  return Tensor::empty(x.shape(), dtype, x.device());
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, std::optional<DType> result) {
  check_common("rms_norm", x, weight);
  Tensor y = like("rms_norm", x, result);
  SSM_DISPATCH(x.device(), rms_norm(x, weight, eps, y));
  return y;
}

Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                    std::optional<DType> result) {
  check_common("add_rms_norm", x, weight);
  check_parameter("add_rms_norm", "residual", residual, x.shape(), x);
  Tensor y = like("add_rms_norm", x, result);
  SSM_DISPATCH(x.device(), add_rms_norm(x, residual, weight, eps, y));
  return y;
}

Tensor gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps) {
  check_common("gated_rms_norm", x, weight);
  check_activation("gated_rms_norm", "z", z, x.shape(), x);
  SSM_CHECK(groups >= 1 && x.size(1) % groups == 0, "gated_rms_norm: {} groups do not divide a row of {}",
            groups, x.size(1));
  Tensor y = like("gated_rms_norm", x, {});
  SSM_DISPATCH(x.device(), gated_rms_norm(x, z, weight, groups, eps, y));
  return y;
}

}  // namespace ssm
