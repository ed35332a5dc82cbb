// token_scores: log-probabilities of given tokens and of the best ones beside them, as `score` gives them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ssm/core/tensor.h"

namespace ssm {

struct ScoredToken {
  int32_t id = -1;
  float logprob = 0;
};

struct TokenScores {
  float logprob = 0;              // of the token itself
  std::vector<ScoredToken> best;  // best first, the lowest id of equals; a token has one value here and above
};

// logits [T, V] f32 on the host; targets: T ids, or -1 for none (its logprob is then 0); `count` best tokens
// a row, or as many as have a finite score. Over ids below `vocab`.
std::vector<TokenScores> token_scores(const Tensor& logits, std::span<const int32_t> targets, int64_t vocab,
                                      int64_t count);

}  // namespace ssm
