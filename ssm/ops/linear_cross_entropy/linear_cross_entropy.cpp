#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_cuda.h"

namespace ssm {
namespace {

constexpr std::string_view kOp = "linear_cross_entropy";

void check_weight(const Weight& weight, const Tensor& hidden, int64_t vocab) {
  const Shape& shape = shape_of(weight);
  SSM_CHECK(defined(weight) && shape.rank() == 2, "{}: weight has shape {}, expected [V, M]", kOp, shape);
  SSM_CHECK(vocab >= 1 && vocab <= shape[0] && vocab <= INT32_MAX, "{}: a vocabulary of {} of weight {}", kOp,
            vocab, shape);
  SSM_CHECK(hidden.defined() && hidden.rank() == 2, "{}: hidden has shape {}, expected [T, {}]", kOp,
            hidden.shape(), shape[1]);
  check_first(kOp, "hidden", hidden, {hidden.size(0), shape[1]});
  const auto* w = std::get_if<Tensor>(&weight);
  SSM_CHECK(w == nullptr || w->size(1) <= 1 || w->stride(1) == 1,
            "{}: the rows of weight {} are not contiguous", kOp, shape);
  const bool on_card = hidden.device().is_cuda();
  SSM_CHECK(device_of(weight) == hidden.device() && (!on_card || (w && w->dtype() == hidden.dtype())),
            "{}: weight is {} on {}, hidden {} on {}", kOp, type_name(weight), name_of(device_of(weight)),
            name_of(hidden.dtype()), name_of(hidden.device()));
}

void check_targets(const Tensor& targets, const Tensor& hidden, int64_t vocab) {
  const int64_t T = hidden.size(0);
  SSM_CHECK(targets.defined() && targets.shape() == Shape{T}, "{}: targets have shape {}, expected [{}]", kOp,
            targets.shape(), T);
  SSM_CHECK(targets.dtype() == DType::i32 && targets.contiguous() && targets.device() == hidden.device(),
            "{}: targets are {} on {}, expected contiguous i32 on {}", kOp, name_of(targets.dtype()),
            name_of(targets.device()), name_of(hidden.device()));
  for (int64_t t = 0; !hidden.device().is_cuda() && t < T; ++t) {
    const int32_t target = targets.values<int32_t>()[static_cast<size_t>(t)];
    SSM_CHECK(target >= -1 && target < vocab, "{}: target {} in row {} is outside the vocabulary of {}", kOp,
              target, t, vocab);
  }
}

}  // namespace

LinearCrossEntropy linear_cross_entropy(const Tensor& hidden, const Weight& weight, const Tensor& targets,
                                        const Tensor& row_weights, float scale, int64_t vocab,
                                        const LinearCrossEntropyGrads& grads) {
  check_weight(weight, hidden, vocab);
  check_targets(targets, hidden, vocab);
  if (row_weights.defined()) check_parameter(kOp, "row_weights", row_weights, targets.shape(), hidden);
  if (grads.dhidden.defined()) check_activation(kOp, "dhidden", grads.dhidden, hidden.shape(), hidden);
  if (grads.dweight.defined()) {
    SSM_CHECK(std::holds_alternative<Tensor>(weight), "{}: a packed weight ({}) has no gradient", kOp,
              type_name(weight));
    check_parameter(kOp, "dweight", grads.dweight, shape_of(weight), hidden);
  }
  const Device device = hidden.device();
  const LinearCrossEntropy result{Tensor::zeros({1}, device.is_cuda() ? DType::f32 : DType::f64, device),
                                  Tensor::zeros({1}, DType::i64, device)};
  SSM_DISPATCH(device,
               linear_cross_entropy(hidden, weight, targets, row_weights, scale, vocab, grads, result));
  return result;
}

}  // namespace ssm
