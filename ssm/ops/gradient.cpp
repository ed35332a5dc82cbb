#include "ssm/ops/gradient.h"

#include <exception>
#include <utility>

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

void record_residual_norm(
    const Tensor& x, const Tensor& before, Tensor& residual, Tensor& y,
    std::function<void(const Tensor& dy, const Tensor& dresidual, const Tensor& dx)> backward) {
  Tensor* outputs[] = {&y, &residual};
  current_tape()->record(outputs, [x = x.borrowed(), before = before.borrowed(), shape = residual.shape(),
                                   device = residual.device(),
                                   backward = std::move(backward)](std::span<const Tensor> gradients) {
    const Tensor& above = gradients[1];
    const Tensor dresidual = !above.defined()     ? Tensor::zeros(shape, DType::f32, device)
                             : above.sole_owner() ? above
                                                  : above.clone();
    if (!gradients[0].defined()) {
      give_gradient(x, dresidual);
      give_gradient(before, dresidual);
      return;
    }
    const bool narrow = x.dtype() != DType::f32;
    {
      const OverwrittenGradient dx(narrow ? x : Tensor());
      backward(gradients[0], dresidual, dx.tensor());
    }
    if (!narrow) give_gradient(x, dresidual);
    give_gradient(before, dresidual);
  });
}

void zero_gradient(const Tensor& gradient) {
  const size_t element = size_of(gradient.dtype());
  zero_rows(gradient.raw(), gradient.device(), gradient.size(0),
            static_cast<size_t>(gradient.stride(0)) * element,
            static_cast<size_t>(gradient.size(1)) * element);
}

}  // namespace ssm
