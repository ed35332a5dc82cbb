// cross_entropy: the negative log-likelihood of one target a row, and the row's best token.
//
//   nll[t] = log(sum_v exp(logits[t, v])) - logits[t, targets[t]]      over v < vocab
//
//   logits  [T, V] f32, rows contiguous
//   targets [T]    i32 on the device of logits; -1: the row has none, its nll is 0
//   nll     [T]    f32;  argmax [T] i32, the lowest id of equals
// A score of NaN or -inf counts as none, and only a finite one is the best. Errors: a target outside
// [0, vocab), by value and row; a row without one finite score. The host does not see a card's tensors: there
// the row's nll is NaN instead, and the argmax of a row without a finite score is -1.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

struct CrossEntropy {
  Tensor nll;     // [T] f32
  Tensor argmax;  // [T] i32
};

CrossEntropy cross_entropy(const Tensor& logits, const Tensor& targets, int64_t vocab);

}  // namespace ssm
