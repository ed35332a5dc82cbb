// score: how likely a model finds a text, token by token, in memory that does not grow with its length.
#pragma once

#include <functional>
#include <span>

#include "ssm/load/load_model.h"
#include "ssm/runtime/state_pool.h"

namespace ssm {

struct TokenScore {
  int64_t position;  // of the token
  float logprob;     // of the token after those before it; NaN for the first one
  int32_t argmax;    // the best next token after it
};

// Reads `ids` as one sequence from a fresh state and gives each token's score in order. Ids at or above
// model.usable_vocab() count as impossible.
void score(const LoadedModel& model, std::span<const int32_t> ids,
           const std::function<void(const TokenScore&)>& visit);

}  // namespace ssm
