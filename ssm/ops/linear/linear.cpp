#include "ssm/ops/linear/linear.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm {

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType compute,
              std::optional<DType> result) {
  const Tensor& w = std::get<Tensor>(weight);
  SSM_CHECK(w.defined() && w.rank() == 2, "linear: weight has shape {}, expected [N, K]", w.shape());
  SSM_CHECK(w.size(1) <= 1 || w.stride(1) == 1, "linear: the rows of weight {} are not contiguous",
            w.shape());
  const int64_t N = w.size(0), K = w.size(1);
  SSM_CHECK(x.defined() && x.rank() == 2, "linear: x has shape {}, expected [T, {}]", x.shape(), K);
  check_first("linear", "x", x, {x.size(0), K});
  if (x.device().is_cuda()) {
    SSM_CHECK(w.dtype() == x.dtype() && compute == x.dtype(),
              "linear: x is {}, weight {}, computed in {}: on a card they are of one type",
              name_of(x.dtype()), name_of(w.dtype()), name_of(compute));
  }
  SSM_CHECK(w.device() == x.device(), "linear: weight is on {}, x on {}", name_of(w.device()),
            name_of(x.device()));
  if (bias.defined()) check_parameter("linear", "bias", bias, {N}, x);
  const DType to = result.value_or(x.dtype());
  check_result("linear", to, x.device());
  SSM_CHECK(to == x.dtype() || to == DType::f32, "linear: a result in {} of x in {}", name_of(to),
            name_of(x.dtype()));
  Tensor y = Tensor::empty({x.size(0), N}, to, x.device());
  SSM_DISPATCH(x.device(), linear(x, w, bias, compute, y));
  return y;
}

bool multiplies_natively(DType dtype, Device device) {
  return SSM_DISPATCH(device, multiplies_natively(dtype));
}

DType activation_dtype(DType compute, Device device) { return device.is_cuda() ? compute : DType::f32; }

}  // namespace ssm
