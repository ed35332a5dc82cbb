#include "ssm/runtime/token_scores.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/ops/cross_entropy/cross_entropy.h"

namespace ssm {
namespace {

// The ids of the `count` highest finite scores, best first, the lowest id of equals.
std::vector<int32_t> best_ids(std::span<const float> row, int64_t count) {
  std::vector<int32_t> ids;  // a heap whose front is the worst of those kept
  const auto better = [&](int32_t a, int32_t b) {
    const float x = row[static_cast<size_t>(a)], y = row[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  for (int32_t id = 0; id < static_cast<int32_t>(row.size()); ++id) {
    if (!std::isfinite(row[static_cast<size_t>(id)])) continue;
    const bool full = std::ssize(ids) == count;
    if (full && !better(id, ids.front())) continue;
    if (full) {
      std::pop_heap(ids.begin(), ids.end(), better);
      ids.pop_back();
    }
    ids.push_back(id);
    std::push_heap(ids.begin(), ids.end(), better);
  }
  std::sort_heap(ids.begin(), ids.end(), better);
  return ids;
}

}  // namespace

std::vector<TokenScores> token_scores(const Tensor& logits, std::span<const int32_t> targets, int64_t vocab,
                                      int64_t count) {
  const int64_t T = logits.size(0);
  SSM_CHECK(std::ssize(targets) == T && count >= 0, "token_scores: {} targets for {} rows, {} best",
            targets.size(), T, count);
  // The op that `score` uses gives every value, so that equal tokens have equal ones.
  const auto logprobs = [&](std::span<const int32_t> ids) {
    return cross_entropy(logits, Tensor::from_values<int32_t>(ids, {T}), vocab).nll;
  };
  std::vector<TokenScores> scores(static_cast<size_t>(T));
  const Tensor own = logprobs(targets);
  for (size_t t = 0; t < scores.size(); ++t) scores[t].logprob = -own.values<float>()[t];
  if (count == 0) return scores;
  parallel_for(T, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = logits.data<float>() + t * logits.stride(0);
      for (const int32_t id : best_ids({row, static_cast<size_t>(vocab)}, count)) {
        scores[static_cast<size_t>(t)].best.push_back({id, 0});
      }
    }
  });
  std::vector<int32_t> ids(static_cast<size_t>(T));
  for (size_t k = 0; k < static_cast<size_t>(count); ++k) {
    for (size_t t = 0; t < scores.size(); ++t) ids[t] = k < scores[t].best.size() ? scores[t].best[k].id : -1;
    const Tensor values = logprobs(ids);
    for (size_t t = 0; t < scores.size(); ++t) {
      if (k < scores[t].best.size()) scores[t].best[k].logprob = -values.values<float>()[t];
    }
  }
  return scores;
}

}  // namespace ssm
