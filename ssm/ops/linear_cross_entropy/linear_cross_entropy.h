// linear_cross_entropy: the training loss from the last hidden states, and its gradient in the same call.
//
//   logits[t] = weight hidden[t]                                           over v < vocab
//   nll[t]    = log(sum_v exp(logits[t, v])) - logits[t, targets[t]]       0 where targets[t] is -1
//   loss      = scale * sum_t row_weights[t] nll[t]
//   dlogits[t, v] = scale row_weights[t] (softmax(logits[t])[v] - [v = targets[t]])
//   dhidden   = dlogits weight;   dweight += dlogits^T hidden
//
// The logits exist for a block of rows at a time, since the gradient of a block needs nothing of the others
// (Hsu et al. 2024, "Liger Kernel", 3.2: fused linear cross entropy).
//
//   hidden      [T, M] f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   weight      [V, M] f32, bf16 or f16, as in linear; rows from `vocab` on take no part
//   targets     [T]    i32, contiguous; -1: the row is left out
//   row_weights [T]    f32, contiguous, or undefined for ones
//   dhidden     [T, M] of hidden's type, likewise; overwritten, 0 in rows that are left out
//   dweight     [V, M] f32, rows contiguous; added to
//   loss        [1]    f64 on a CPU, f32 on a card;  count [1] i64: rows with a target
//
// A gradient that is undefined is not computed, nor paid for. A row with a NaN logit makes the loss and its
// gradients NaN (on a card a NaN in weight those of every row). The mean over the targets: scale = 1 / count,
// which the caller knows from its targets. The same bits whatever the threads. Errors: a target outside [0,
// vocab), by value and row; on a card such a row makes the loss NaN, since the host does not see it.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/quant/weight.h"

namespace ssm {

struct LinearCrossEntropyGrads {
  Tensor dhidden{}, dweight{};
};
struct LinearCrossEntropy {
  Tensor loss;   // [1]
  Tensor count;  // [1] i64
};

LinearCrossEntropy linear_cross_entropy(const Tensor& hidden, const Weight& weight, const Tensor& targets,
                                        const Tensor& row_weights, float scale, int64_t vocab,
                                        const LinearCrossEntropyGrads& grads = {});

}  // namespace ssm
