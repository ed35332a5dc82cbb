// The loss at a model's head from its last hidden states, and what of its gradient does not lie on the tape.
#pragma once

#include <vector>

#include "ssm/autograd/tape.h"
#include "ssm/models/causal_lm.h"

namespace ssm::train {

// scale * the targets' negative log-likelihoods [1] (linear_cross_entropy.h). With a gradient the head's is
// added to, and the tape, which holds how `hidden` came about, is run backwards.
//
// With a Lora on the head, logits = h W^T + scale inner B^T = [h, inner] [W, scale B]^T: the loss is one of
// hidden states and a matrix that are wider by the rank. It costs what training the whole head costs.
Tensor head_loss(const CausalLm& model, const Tensor& hidden, const Tensor& targets, float scale,
                 int64_t vocab, DType compute, Tape* tape);

}  // namespace ssm::train
