// sampling: the next token of each row of logits.
//
// In this order: repetition penalty over the tokens marked in `seen` (a score below 0 is multiplied by it,
// another divided), ids at or above `vocab` masked; then the highest score when temperature is 0 or top_k is
// 1 (the lowest id of equals), else: temperature, top_k, top_p and min_p on probabilities, and one draw that
// depends on (seed, position) alone, so the same seed gives the same text whatever the batch and the threads.
// NaN and -inf are never chosen. Of equals at the edge of a filter the lowest ids stay.
//
//   logits [B, V]  f32, rows contiguous; left as they are
//   rows   [B, sizeof(SamplingRow)]  u8, contiguous: what sampling_rows() made, moved to the device of
//   logits.
//                  Each row's position is advanced by one in place, so that a captured step can be replayed
//   seen   [S, V]  u8, 1 where the slot's prompt or text holds the token; the chosen token is marked
//                  in place. Undefined when no row has a penalty
//   ids    [B]     i32, written in place: the next step's input
//
// Weights are f32, their sums integers (units_of), so a result depends on no order of summation: from the
// same logits a card and a CPU with fused multiply-add choose the same ids, always.
//
// Errors: a parameter outside its range, a slot outside of `seen`, a penalty without `seen`, a row without
// one finite score, by name; nothing is marked or advanced then. The host does not see a card's tensors:
// there the id of such a row is -1, it marks nothing, and its position is advanced.
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
  bool operator==(const SamplingParams&) const = default;
};

// One row's parameters as they lie in a tensor.
struct SamplingRow {
  SamplingParams params;
  int32_t slot = 0;      // of `seen`
  int64_t position = 0;  // how many tokens the row's sequence holds already: the index of the draw
  bool operator==(const SamplingRow&) const = default;
};

inline constexpr int64_t kMostSampled = int64_t{1} << 22;  // ids a row may have, for the sums of units

void check(const SamplingParams& params);

// The rows of a batch, on the host; `slots` may be empty where there is no `seen`.
Tensor sampling_rows(std::span<const SamplingParams> params, std::span<const int32_t> slots,
                     std::span<const int64_t> positions);

void sample(const Tensor& logits, int64_t vocab, const Tensor& rows, const Tensor& seen, const Tensor& ids);

// The same in one call, for rows that are used once. The result is on the device of logits.
Tensor sample(const Tensor& logits, int64_t vocab, std::span<const SamplingParams> params, const Tensor& seen,
              std::span<const int32_t> slots, std::span<const int64_t> positions);

}  // namespace ssm
