// sampling: the next token of each row of logits.
//
// In this order: repetition penalty over the tokens marked in `seen` (a score below 0 is multiplied by it,
// another divided), ids at or above `vocab` masked; then the highest score when temperature is 0 or top_k is
// 1 (the lowest id of equals), else: temperature, top_k, top_p and min_p on probabilities, and one draw that
// depends on (seed, position) alone, so the same seed gives the same text whatever the batch and the threads.
// NaN and -inf are never chosen. Of equals at the edge of a filter the lowest ids stay.
//
//   logits   [B, V]  f32, rows contiguous; left as they are
//   params   B rows
//   seen     [S, V]  u8, 1 where the slot's prompt or text holds the token; the chosen token is marked
//                    in place. Undefined when no row has a penalty.
//   slots    B rows of `seen`
//   positions B      how many tokens the row's sequence holds already: the index of the draw
//   result   [B]     i32
//
// Errors: a parameter outside its range, a row without one finite score, by name.
#pragma once

#include <cstdint>
#include <span>

#include "ssm/core/tensor.h"

namespace ssm {

struct SamplingParams {
  float temperature = 1.0f;  // >= 0; 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // [0, 1]: keep the fewest tokens whose probabilities reach it; 0 and 1: off
  float min_p = 0.0f;        // [0, 1): drop tokens below min_p times the highest probability
  float repetition_penalty = 1.0f;  // > 0
  uint64_t seed = 0;
};

void check(const SamplingParams& params);

Tensor sample(const Tensor& logits, int64_t vocab, std::span<const SamplingParams> params, const Tensor& seen,
              std::span<const int32_t> slots, std::span<const int64_t> positions);

}  // namespace ssm
