#include "ssm/ops/gradient.h"

#include <exception>

#include "ssm/ops/elementwise/elementwise.h"

namespace ssm {

OverwrittenGradient::OverwrittenGradient(const Tensor& x) : target_(gradient_target(x)) {
  const Tensor& to = target_.tensor;
  written_ = target_.adds ? Tensor::empty(to.shape(), to.dtype(), to.device()) : to;
}

OverwrittenGradient::~OverwrittenGradient() noexcept(false) {
  if (target_.adds && std::uncaught_exceptions() == 0) add_scaled(target_.tensor, written_, 1.0f);
}

Tensor initial_of(const Tensor& state, const SequenceBatch& batch) {
  if (!state.defined()) return {};
  SSM_CHECK(state.dtype() == DType::f32, "training keeps states in f32, not in {}", name_of(state.dtype()));
  Shape shape = state.shape();
  shape[0] = batch.size();
  Tensor initial = Tensor::empty(shape, DType::f32, state.device());
  for (int64_t b = 0; b < batch.size(); ++b) {
    const Tensor to = initial.select(0, b);
    copy_bytes(to.raw(), to.device(), state.select(0, batch.slot(b)).raw(), state.device(), to.bytes());
  }
  return initial;
}

void give_gradient(const Tensor& x, const Tensor& gradient) {
  if (gradient_hand_over(x, gradient)) return;
  const GradientTarget to = gradient_target(x);
  if (!to.adds) zero_gradient(to.tensor);
  add_scaled(to.tensor, gradient, 1.0f);
}

void zero_gradient(const Tensor& gradient) {
  const size_t element = size_of(gradient.dtype());
  zero_rows(gradient.raw(), gradient.device(), gradient.size(0),
            static_cast<size_t>(gradient.stride(0)) * element,
            static_cast<size_t>(gradient.size(1)) * element);
}

}  // namespace ssm
