#include "ssm/ops/linear/linear.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/linear/linear_cpu.h"

namespace ssm {

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType compute) {
  const Tensor& w = std::get<Tensor>(weight);
  SSM_CHECK(w.defined() && w.rank() == 2, "linear: weight has shape {}, expected [N, K]", w.shape());
  SSM_CHECK(w.size(1) <= 1 || w.stride(1) == 1, "linear: the rows of weight {} are not contiguous",
            w.shape());
  const int64_t N = w.size(0), K = w.size(1);
  SSM_CHECK(x.defined() && x.rank() == 2, "linear: x has shape {}, expected [T, {}]", x.shape(), K);
  check_operand("linear", "x", x, {x.size(0), K});
  if (bias.defined()) check_operand("linear", "bias", bias, {N});
  Tensor y = Tensor::empty({x.size(0), N}, DType::f32, x.device());
  SSM_DISPATCH(x.device(), linear(x, w, bias, compute, y));
  return y;
}

bool multiplies_natively(DType dtype, Device device) {
  return SSM_DISPATCH(device, multiplies_natively(dtype));
}

}  // namespace ssm
