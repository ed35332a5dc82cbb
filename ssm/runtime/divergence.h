// How far a model is from another one of the same vocabulary: a quantized one from its original.
#pragma once

#include <functional>
#include <span>

#include "ssm/load/load_model.h"

namespace ssm {

// Both read a text as one sequence and say after each token what comes next. P is the original's
// distribution, Q the other's; in nats.
struct Divergence {
  int64_t tokens = 0;                // of the text; all but the first are predicted
  double original_nll = 0, nll = 0;  // means over the predicted tokens
  double kl = 0;                     // mean of KL(P || Q)
  double largest_kl = 0;
  double same_best = 0;  // share of tokens where both find the same next token best

  double original_perplexity() const;
  double perplexity() const;
};

// `progress` gets how many tokens are read, now and then. Throws Error for vocabularies that differ, an id
// outside of them, less than two ids, and scores that are not finite.
Divergence divergence(const LoadedModel& original, const LoadedModel& other, std::span<const int32_t> ids,
                      const std::function<void(int64_t)>& progress = {});

}  // namespace ssm
