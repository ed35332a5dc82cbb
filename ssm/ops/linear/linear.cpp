#include "ssm/ops/linear/linear.h"

#include "ssm/autograd/tape.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/linear/linear_cpu.h"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_packed_cuda.h"

namespace ssm {

namespace {

// What linear and its backward both need of a weight; of N rows, where these are known.
void check_weight(std::string_view op, const Weight& weight, std::optional<int64_t> N = {}) {
  const Shape& shape = shape_of(weight);
  SSM_CHECK(defined(weight) && shape.rank() == 2 && shape[0] == N.value_or(shape[0]),
            "{}: weight has shape {}, expected [{}, K]", op, shape, N ? fmt::to_string(*N) : "N");
  if (is_packed(weight)) return;
  const Tensor& w = std::get<Tensor>(weight);
  SSM_CHECK(w.size(1) <= 1 || w.stride(1) == 1, "{}: the rows of weight {} are not contiguous", op,
            w.shape());
}

void check_operands(std::string_view op, const Tensor& x, const Weight& weight, const Tensor& bias,
                    DType compute) {
  check_weight(op, weight);
  const int64_t N = shape_of(weight)[0], K = shape_of(weight)[1];
  SSM_CHECK(x.defined() && x.rank() == 2, "{}: x has shape {}, expected [T, {}]", op, x.shape(), K);
  check_first(op, "x", x, {x.size(0), K});
  SSM_CHECK(device_of(weight) == x.device(), "{}: weight is on {}, x on {}", op, name_of(device_of(weight)),
            name_of(x.device()));
  if (x.device().is_cuda()) {
    SSM_CHECK((is_packed(weight) || std::get<Tensor>(weight).dtype() == x.dtype()) && compute == x.dtype(),
              "{}: x is {}, weight {}, computed in {}: on a card they are of one type", op,
              name_of(x.dtype()), type_name(weight), name_of(compute));
  }
  if (bias.defined()) check_parameter(op, "bias", bias, {N}, x);
}

void check_residual(std::string_view op, const Tensor& x, const Weight& weight, const Tensor& residual) {
  const Shape shape{x.size(0), shape_of(weight)[0]};
  SSM_CHECK(residual.defined() && residual.shape() == shape && residual.dtype() == DType::f32 &&
                residual.device() == x.device() && residual.stride(1) == 1,
            "{}: residual has shape {}, expected f32 {}", op, residual.shape(), shape);
}

// has: what the backend says of these operands.
void check_has(bool has, std::string_view op, const Tensor& x, const Weight& weight) {
  SSM_CHECK(has, "{}: nothing for {} rows of a weight {} on {}", op, x.size(0), type_name(weight),
            name_of(x.device()));
}

void check_both(std::string_view op, const LinearOperands& first, const LinearOperands& second) {
  for (const LinearOperands* p : {&first, &second})
    check_operands(op, p->x, p->weight, p->bias, p->x.dtype());
  SSM_CHECK(first.x.size(0) == second.x.size(0) && first.x.dtype() == second.x.dtype() &&
                first.x.device() == second.x.device(),
            "{}: x are {} {} and {} {}", op, name_of(first.x.dtype()), first.x.shape(),
            name_of(second.x.dtype()), second.x.shape());
}

}  // namespace

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias, DType compute,
              std::optional<DType> result, const Tensor& rounded_bias) {
  check_operands("linear", x, weight, bias, compute);
  const int64_t N = shape_of(weight)[0];
  const auto* packed = std::get_if<QuantizedTensor>(&weight);
  SSM_CHECK(
      !rounded_bias.defined() || (rounded_bias.shape() == bias.shape() && rounded_bias.dtype() == compute),
      "linear: rounded_bias is {} {}, expected {} [{}]", name_of(rounded_bias.dtype()), rounded_bias.shape(),
      name_of(compute), N);
  const DType to = result.value_or(x.dtype());
  check_result("linear", to, x.device());
  SSM_CHECK(to == x.dtype() || to == DType::f32, "linear: a result in {} of x in {}", name_of(to),
            name_of(x.dtype()));
  Tensor y = Tensor::empty({x.size(0), N}, to, x.device());
  std::visit([&](const auto& w) { SSM_DISPATCH(x.device(), linear(x, w, bias, rounded_bias, compute, y)); },
             weight);
  const Tensor w = packed != nullptr ? Tensor{} : std::get<Tensor>(weight);
  if (!records(x, w, bias)) return y;
  // A frozen matrix needs no x.
  return record(std::move(y), [x = wants_gradient(w) ? x : x.borrowed(), weight, w, bias](const Tensor& dy) {
    const GradientTarget dx = gradient_target(x);
    linear_backward(
        x, weight, dy,
        {.dx = dx.tensor, .dx_adds = dx.adds, .dweight = gradient_sum(w), .dbias = gradient_sum(bias)});
  });
}

bool has_linear_add(int64_t T, const Weight& weight) {
  return SSM_CUDA_HAS(device_of(weight), has_linear_add(T, weight));
}

void linear_add(const Tensor& x, const Weight& weight, const Tensor& bias, const Tensor& residual) {
  constexpr std::string_view kOp = "linear_add";
  check_operands(kOp, x, weight, bias, x.dtype());
  check_residual(kOp, x, weight, residual);
  check_has(has_linear_add(x.size(0), weight), kOp, x, weight);
  if constexpr (kHasCuda) cuda::linear_add(x, weight, bias, residual);
}

bool has_linear_beside(const LinearOperands& first, const LinearOperands& second) {
  return SSM_CUDA_HAS(device_of(first.weight), has_linear_beside(first, second));
}

bool has_linear_add_both(const LinearOperands& first, const LinearOperands& second) {
  return SSM_CUDA_HAS(device_of(first.weight), has_linear_add_both(first, second));
}

std::pair<Tensor, Tensor> linear_beside(const LinearOperands& first, const LinearOperands& second) {
  constexpr std::string_view kOp = "linear_beside";
  check_both(kOp, first, second);
  check_has(has_linear_beside(first, second), kOp, first.x, first.weight);
  const auto result = [](const LinearOperands& p) {
    return Tensor::empty({p.x.size(0), shape_of(p.weight)[0]}, p.x.dtype(), p.x.device());
  };
  std::pair<Tensor, Tensor> y{result(first), result(second)};
  if constexpr (kHasCuda) cuda::linear_beside(first, second, y.first, y.second);
  return y;
}

void linear_add_both(const LinearOperands& first, const LinearOperands& second, const Tensor& residual) {
  constexpr std::string_view kOp = "linear_add_both";
  check_both(kOp, first, second);
  SSM_CHECK(shape_of(first.weight)[0] == shape_of(second.weight)[0], "{}: weights {} and {} differ in rows",
            kOp, shape_of(first.weight), shape_of(second.weight));
  check_residual(kOp, first.x, first.weight, residual);
  check_has(has_linear_add_both(first, second), kOp, first.x, first.weight);
  if constexpr (kHasCuda) cuda::linear_add_both(first, second, residual);
}

bool has_linear_of_norm(int64_t T, const Weight& weight) {
  return SSM_CUDA_HAS(device_of(weight), has_linear_of_norm(T, weight));
}

UndividedNorm linear_add_norm(const LinearOperands& p, const Tensor& residual, const Tensor& norm_weight,
                              float eps) {
  constexpr std::string_view kOp = "linear_add_norm";
  check_operands(kOp, p.x, p.weight, p.bias, p.x.dtype());
  check_residual(kOp, p.x, p.weight, residual);
  check_parameter(kOp, "norm_weight", norm_weight, {residual.size(1)}, p.x);
  check_has(has_linear_of_norm(p.x.size(0), p.weight), kOp, p.x, p.weight);
  if constexpr (kHasCuda) return cuda::linear_add_norm(p, residual, norm_weight, eps);
  return {};
}

Tensor linear_of_norm(const UndividedNorm& x, const Weight& weight, const Tensor& bias) {
  constexpr std::string_view kOp = "linear_of_norm";
  check_operands(kOp, x.x, weight, bias, x.x.dtype());
  SSM_CHECK(x.squares.defined() && x.squares.rank() == 2 && x.squares.size(0) == x.x.size(0) &&
                x.squares.dtype() == DType::f32 && x.squares.stride(0) == x.squares.size(1) &&
                x.squares.size(1) % 4 == 0,
            "{}: squares have shape {}, expected f32 [{}, a multiple of 4]", kOp, x.squares.shape(),
            x.x.size(0));
  check_has(has_linear_of_norm(x.x.size(0), weight), kOp, x.x, weight);
  Tensor y = Tensor::empty({x.x.size(0), shape_of(weight)[0]}, x.x.dtype(), x.x.device());
  if constexpr (kHasCuda) cuda::linear_of_norm(x, std::get<Tensor>(weight), bias, y);
  return y;
}

Tensor round_bias(const Tensor& bias, DType compute) {
  if (!bias.defined() || compute == DType::f32) return {};
  return SSM_DISPATCH(bias.device(), round_bias(bias, compute));
}

void linear_backward(const Tensor& x, const Weight& weight, const Tensor& dy, const LinearGrads& grads) {
  constexpr std::string_view kOp = "linear_backward";
  SSM_CHECK(dy.defined() && dy.rank() == 2, "{}: dy has shape {}, expected [T, N]", kOp, dy.shape());
  const int64_t T = dy.size(0), N = dy.size(1);
  check_first(kOp, "dy", dy, {T, N});
  const auto* packed = std::get_if<QuantizedTensor>(&weight);
  if (grads.dx.defined()) {
    check_weight(kOp, weight, N);
    SSM_CHECK(device_of(weight) == dy.device(), "{}: weight is {} on {}, dy {} on {}", kOp, type_name(weight),
              name_of(device_of(weight)), name_of(dy.dtype()), name_of(dy.device()));
    SSM_CHECK(!dy.device().is_cuda() || packed != nullptr || std::get<Tensor>(weight).dtype() == dy.dtype(),
              "{}: weight is {}, dy {}: on a card they are of one type", kOp, type_name(weight),
              name_of(dy.dtype()));
    check_activation(kOp, "dx", grads.dx, {T, shape_of(weight)[1]}, dy);
  }
  if (grads.dweight.defined()) {
    SSM_CHECK(packed == nullptr, "{}: a packed weight ({}) has no gradient", kOp, type_name(weight));
    SSM_CHECK(x.defined() && x.rank() == 2, "{}: x has shape {}, expected [{}, K]", kOp, x.shape(), T);
    check_activation(kOp, "x", x, {T, x.size(1)}, dy);
    check_parameter(kOp, "dweight", grads.dweight, {N, x.size(1)}, dy);
  }
  if (grads.dbias.defined()) check_parameter(kOp, "dbias", grads.dbias, {N}, dy);
  if (packed == nullptr) {
    SSM_DISPATCH(dy.device(), linear_backward(x, std::get<Tensor>(weight), dy, grads));
    return;
  }
  if (grads.dx.defined()) SSM_DISPATCH(dy.device(), linear_dx(*packed, dy, grads.dx, grads.dx_adds));
  const LinearGrads of_bias{.dbias = grads.dbias};
  SSM_DISPATCH(dy.device(), linear_backward({}, {}, dy, of_bias));
}

bool multiplies_natively(DType dtype, Device device) {
  return SSM_DISPATCH(device, multiplies_natively(dtype));
}

DType activation_dtype(DType compute, Device device) { return device.is_cuda() ? compute : DType::f32; }

}  // namespace ssm
