// For the backward functions that an op records.
#pragma once

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

// A whole gradient of x that is ready and of its type: handed over, or added to what has arrived before.
void give_gradient(const Tensor& x, const Tensor& gradient);

void zero_gradient(const Tensor& gradient);  // [T, M], rows contiguous

}  // namespace ssm
