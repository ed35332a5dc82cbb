// The meaning of sampling on one row, in plain loops and sorts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "ssm/core/rng.h"
#include "ssm/ops/sampling/sampling.h"

namespace ssm::reference {

template <class T>
struct Distribution {
  std::vector<int32_t> ids;  // what the filters keep, by id
  std::vector<T> probabilities;
};

// Of the finite scores of a row; `seen` may be empty. Nothing is kept when no score is finite.
template <class T>
Distribution<T> distribution(std::vector<T> scores, const std::vector<uint8_t>& seen,
                             const SamplingParams& p) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < scores.size(); ++i) {
    const T penalty = !seen.empty() && seen[i] ? static_cast<T>(p.repetition_penalty) : T(1);
    scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
    if (std::isfinite(scores[i])) ids.push_back(static_cast<int32_t>(i));
  }
  auto score = [&](int32_t id) { return scores[static_cast<size_t>(id)]; };
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
  if (ids.empty()) return {};
  if (p.temperature == 0 || p.top_k == 1) return {{ids[0]}, {T(1)}};

  if (p.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(p.top_k)));
  std::vector<T> weights;
  for (const int32_t id : ids) weights.push_back(std::exp((score(id) - score(ids[0])) / T(p.temperature)));
  if (p.top_p > 0 && p.top_p < 1) {
    const T mass = T(p.top_p) * std::accumulate(weights.begin(), weights.end(), T(0));
    size_t n = 0;
    for (T sum = 0; n < ids.size() && sum < mass; ++n) sum += weights[n];
    ids.resize(n), weights.resize(n);
  }
  while (weights.back() < T(p.min_p)) ids.pop_back(), weights.pop_back();

  Distribution<T> result;
  const T total = std::accumulate(weights.begin(), weights.end(), T(0));
  std::vector<std::pair<int32_t, T>> by_id;
  for (size_t i = 0; i < ids.size(); ++i) by_id.emplace_back(ids[i], weights[i] / total);
  std::sort(by_id.begin(), by_id.end());
  for (const auto& [id, probability] : by_id) {
    result.ids.push_back(id), result.probabilities.push_back(probability);
  }
  return result;
}

// The draw's number in [0, 1): 53 bits of Philox's stream 1.
inline double draw_uniform(uint64_t seed, int64_t position) {
  const auto bits = philox4x32(seed, 1, static_cast<uint64_t>(position));
  return static_cast<double>(((uint64_t{bits[0]} << 32) | bits[1]) >> 11) * 0x1p-53;
}

// The token whose part of the cumulated probabilities, by id, holds u.
template <class T>
int32_t draw(const Distribution<T>& d, double u) {
  T sum = 0;
  for (size_t i = 0; i < d.ids.size(); ++i) {
    sum += d.probabilities[i];
    if (u < sum) return d.ids[i];
  }
  return d.ids.back();
}

}  // namespace ssm::reference
