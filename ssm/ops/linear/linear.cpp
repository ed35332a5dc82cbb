#include "ssm/ops/linear/linear.h"

#include "ssm/autograd/tape.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm {

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType compute,
              std::optional<DType> result) {
  const Tensor& w = dense(weight, "linear");
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
  if (!records(x, w, bias)) return y;
  // A frozen matrix needs no x.
  return record(std::move(y), [x = wants_gradient(w) ? x : x.borrowed(), w, bias](const Tensor& dy) {
    const GradientTarget dx = gradient_target(x);
    linear_backward(
        x, w, dy,
        {.dx = dx.tensor, .dx_adds = dx.adds, .dweight = gradient_sum(w), .dbias = gradient_sum(bias)});
  });
}

void linear_backward(const Tensor& x, const Weight& weight, const Tensor& dy, const LinearGrads& grads) {
  constexpr std::string_view kOp = "linear_backward";
  SSM_CHECK(dy.defined() && dy.rank() == 2, "{}: dy has shape {}, expected [T, N]", kOp, dy.shape());
  const int64_t T = dy.size(0), N = dy.size(1);
  check_first(kOp, "dy", dy, {T, N});
  const Tensor& w = dense(weight, "linear");
  if (grads.dx.defined()) {
    SSM_CHECK(w.defined() && w.rank() == 2 && w.size(0) == N, "{}: weight has shape {}, expected [{}, K]",
              kOp, w.shape(), N);
    SSM_CHECK(w.size(1) <= 1 || w.stride(1) == 1, "{}: the rows of weight {} are not contiguous", kOp,
              w.shape());
    SSM_CHECK(w.device() == dy.device() && (!dy.device().is_cuda() || w.dtype() == dy.dtype()),
              "{}: weight is {} on {}, dy {} on {}", kOp, name_of(w.dtype()), name_of(w.device()),
              name_of(dy.dtype()), name_of(dy.device()));
    check_activation(kOp, "dx", grads.dx, {T, w.size(1)}, dy);
  }
  if (grads.dweight.defined()) {
    SSM_CHECK(x.defined() && x.rank() == 2, "{}: x has shape {}, expected [{}, K]", kOp, x.shape(), T);
    check_activation(kOp, "x", x, {T, x.size(1)}, dy);
    check_parameter(kOp, "dweight", grads.dweight, {N, x.size(1)}, dy);
  }
  if (grads.dbias.defined()) check_parameter(kOp, "dbias", grads.dbias, {N}, dy);
  SSM_DISPATCH(dy.device(), linear_backward(x, w, dy, grads));
}

bool multiplies_natively(DType dtype, Device device) {
  return SSM_DISPATCH(device, multiplies_natively(dtype));
}

DType activation_dtype(DType compute, Device device) { return device.is_cuda() ? compute : DType::f32; }

}  // namespace ssm
