#include "ssm/ops/activation/activation.h"

#include "ssm/ops/activation/activation_cpu.h"
#include "ssm/ops/activation/activation_cuda.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"

namespace ssm {
namespace {

void check_x(std::string_view op, const Tensor& x) {
  SSM_CHECK(x.defined() && x.rank() == 2, "{}: x has shape {}, expected [T, M]", op, x.shape());
  check_first(op, "x", x, x.shape());
}

}  // namespace

Tensor gelu(const Tensor& x) {
  check_x("gelu", x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  SSM_DISPATCH(x.device(), gelu(x, y));
  if (!records(x)) return y;
  return record(std::move(y), [x](const Tensor& dy) {
    const OverwrittenGradient dx(x);
    gelu_backward(x, dy, dx.tensor());
  });
}

Tensor gated_silu(const Tensor& x, const Tensor& z) {
  check_x("gated_silu", x);
  check_activation("gated_silu", "z", z, x.shape(), x);
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  SSM_DISPATCH(x.device(), gated_silu(x, z, y));
  if (!records(x, z)) return y;
  return record(std::move(y), [x, z](const Tensor& dy) {
    const OverwrittenGradient dx(x), dz(z);
    gated_silu_backward(x, z, dy, dx.tensor(), dz.tensor());
  });
}

void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) {
  check_x("gelu_backward", x);
  check_activation("gelu_backward", "dy", dy, x.shape(), x);
  check_activation("gelu_backward", "dx", dx, x.shape(), x);
  SSM_DISPATCH(x.device(), gelu_backward(x, dy, dx));
}

void gated_silu_backward(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& dx,
                         const Tensor& dz) {
  check_x("gated_silu_backward", x);
  check_activation("gated_silu_backward", "z", z, x.shape(), x);
  check_activation("gated_silu_backward", "dy", dy, x.shape(), x);
  check_activation_gradient("gated_silu_backward", "dx", dx, x.shape(), x);
  check_activation_gradient("gated_silu_backward", "dz", dz, x.shape(), x);
  SSM_DISPATCH(x.device(), gated_silu_backward(x, z, dy, dx, dz));
}

}  // namespace ssm
