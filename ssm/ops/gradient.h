// For the backward functions that an op records.
#pragma once

#include <functional>

#include "ssm/autograd/tape.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

// Where a backward that overwrites puts the gradient of an activation: in place, or where values have arrived
// before, beside them, to be added when this goes.
class OverwrittenGradient {
 public:
  explicit OverwrittenGradient(const Tensor& x);
  ~OverwrittenGradient() noexcept(false);
  OverwrittenGradient(const OverwrittenGradient&) = delete;
  OverwrittenGradient& operator=(const OverwrittenGradient&) = delete;

  const Tensor& tensor() const { return written_; }  // undefined: nobody wants it

 private:
  GradientTarget target_;
  Tensor written_;
};

// What the sequences of a batch begin with, [B, row...] in their order: a copy of their slots' rows, for a
// backward that recomputes states. Undefined for an undefined state.
Tensor initial_of(const Tensor& state, const SequenceBatch& batch);

// Records y = norm(residual) of residual = before + x. The residual's gradient passes through: what the norm
// adds goes to the same memory, and that is both the gradient of the residual before and of x. backward(dy,
// dresidual, dx) adds to dresidual, and overwrites dx with the same where x has 16 bits.
void record_residual_norm(
    const Tensor& x, const Tensor& before, Tensor& residual, Tensor& y,
    std::function<void(const Tensor& dy, const Tensor& dresidual, const Tensor& dx)> backward);

// A whole gradient of x that is ready and of its type: handed over, or added to what has arrived before.
void give_gradient(const Tensor& x, const Tensor& gradient);

void zero_gradient(const Tensor& gradient);  // [T, M], rows contiguous

}  // namespace ssm
