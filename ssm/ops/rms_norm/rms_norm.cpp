#include "ssm/ops/rms_norm/rms_norm.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"
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

// What all backwards share.
void check_backward(std::string_view op, const RmsNormBackward& a) {
  check_common(op, a.x, a.weight);
  SSM_CHECK(a.dy.defined() && a.dy.shape() == a.x.shape(), "{}: dy has shape {}, expected {}", op,
            a.dy.shape(), a.x.shape());
  check_first(op, "dy", a.dy, a.x.shape());
  SSM_CHECK(a.dy.device() == a.x.device(), "{}: dy is on {}, x on {}", op, name_of(a.dy.device()),
            name_of(a.x.device()));
  if (a.dweight.defined()) check_parameter(op, "dweight", a.dweight, {a.x.size(1)}, a.x);
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, std::optional<DType> result) {
  check_common("rms_norm", x, weight);
  Tensor y = like("rms_norm", x, result);
  SSM_DISPATCH(x.device(), rms_norm(x, weight, eps, y));
  if (!records(x, weight)) return y;
  return record(std::move(y), [x, weight, eps](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    rms_norm_backward(x, weight, eps, dy, dx.tensor(), gradient_sum(weight));
  });
}

Tensor add_rms_norm(const Tensor& x, Tensor& residual, const Tensor& weight, float eps,
                    std::optional<DType> result) {
  check_common("add_rms_norm", x, weight);
  check_parameter("add_rms_norm", "residual", residual, x.shape(), x);
  Tensor y = like("add_rms_norm", x, result);
  if (!records(x, residual, weight)) {
    SSM_DISPATCH(x.device(), add_rms_norm(x, residual, residual, weight, eps, y));
    return y;
  }
  const Tensor before =
      std::exchange(residual, Tensor::empty(residual.shape(), residual.dtype(), residual.device()));
  SSM_DISPATCH(x.device(), add_rms_norm(x, before, residual, weight, eps, y));
  record_residual_norm(x, before, residual, y,
                       [residual, weight, eps](const Tensor& dy, const Tensor& dresidual, const Tensor& dx) {
                         add_rms_norm_backward(residual, weight, eps, dy, dresidual, dx,
                                               gradient_sum(weight));
                       });
  return y;
}

Tensor gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps) {
  check_common("gated_rms_norm", x, weight);
  check_activation("gated_rms_norm", "z", z, x.shape(), x);
  SSM_CHECK(groups >= 1 && x.size(1) % groups == 0, "gated_rms_norm: {} groups do not divide a row of {}",
            groups, x.size(1));
  Tensor y = like("gated_rms_norm", x, {});
  SSM_DISPATCH(x.device(), gated_rms_norm(x, z, weight, groups, eps, y));
  if (!records(x, z, weight)) return y;
  return record(std::move(y), [x, z, weight, groups, eps](const Tensor& dy) {
    const OverwrittenGradient dx(x), dz(z);
    gated_rms_norm_backward(x, z, weight, groups, eps, dy, dx.tensor(), dz.tensor(), gradient_sum(weight));
  });
}

void rms_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy, const Tensor& dx,
                       const Tensor& dweight) {
  const RmsNormBackward args{.x = x,
                             .z = {},
                             .weight = weight,
                             .dy = dy,
                             .dresidual = {},
                             .dx = dx,
                             .dz = {},
                             .dweight = dweight,
                             .eps = eps};
  check_backward("rms_norm_backward", args);
  if (dx.defined()) check_activation("rms_norm_backward", "dx", dx, x.shape(), x);
  SSM_DISPATCH(x.device(), rms_norm_backward(args));
}

void add_rms_norm_backward(const Tensor& residual, const Tensor& weight, float eps, const Tensor& dy,
                           const Tensor& dresidual, const Tensor& dx, const Tensor& dweight) {
  const RmsNormBackward args{.x = residual,
                             .z = {},
                             .weight = weight,
                             .dy = dy,
                             .dresidual = dresidual,
                             .dx = dx,
                             .dz = {},
                             .dweight = dweight,
                             .eps = eps};
  check_backward("add_rms_norm_backward", args);
  check_parameter("add_rms_norm_backward", "residual", residual, residual.shape(), residual);
  check_parameter("add_rms_norm_backward", "dresidual", dresidual, residual.shape(), residual);
  if (dx.defined()) {
    check_first("add_rms_norm_backward", "dx", dx, residual.shape());
    SSM_CHECK(dx.device() == residual.device(), "add_rms_norm_backward: dx is on {}, residual on {}",
              name_of(dx.device()), name_of(residual.device()));
  }
  SSM_DISPATCH(residual.device(), rms_norm_backward(args));
}

void gated_rms_norm_backward(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups,
                             float eps, const Tensor& dy, const Tensor& dx, const Tensor& dz,
                             const Tensor& dweight) {
  const RmsNormBackward args{.x = x,
                             .z = z,
                             .weight = weight,
                             .dy = dy,
                             .dresidual = {},
                             .dx = dx,
                             .dz = dz,
                             .dweight = dweight,
                             .groups = groups,
                             .eps = eps};
  check_backward("gated_rms_norm_backward", args);
  check_activation("gated_rms_norm_backward", "z", z, x.shape(), x);
  SSM_CHECK(groups >= 1 && x.size(1) % groups == 0,
            "gated_rms_norm_backward: {} groups do not divide a row of {}", groups, x.size(1));
  if (dx.defined()) check_activation("gated_rms_norm_backward", "dx", dx, x.shape(), x);
  if (dz.defined()) check_activation("gated_rms_norm_backward", "dz", dz, x.shape(), x);
  SSM_DISPATCH(x.device(), rms_norm_backward(args));
}

}  // namespace ssm
