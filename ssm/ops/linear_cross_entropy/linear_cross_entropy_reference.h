// The meaning of linear_cross_entropy, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ssm::reference {

template <class T>
struct LinearCrossEntropy {
  T loss = 0;
  int64_t count = 0;
  std::vector<T> dhidden, dweight;
};

// hidden [T, M], weight [at least vocab, M]; an empty row_weights is all ones.
template <class T>
LinearCrossEntropy<T> linear_cross_entropy(const std::vector<T>& hidden, const std::vector<T>& weight,
                                           const std::vector<int32_t>& targets,
                                           const std::vector<T>& row_weights, T scale, int64_t vocab,
                                           int64_t M) {
  LinearCrossEntropy<T> r;
  r.dhidden.resize(hidden.size());
  r.dweight.resize(weight.size());
  const auto width = static_cast<size_t>(M), columns = static_cast<size_t>(vocab);
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < 0) continue;
    ++r.count;
    std::vector<T> logits(columns);
    for (size_t v = 0; v < columns; ++v) {
      for (size_t m = 0; m < width; ++m) logits[v] += hidden[t * width + m] * weight[v * width + m];
    }
    T maximum = logits[0], sum = 0;
    for (const T x : logits) maximum = std::max(maximum, x);
    for (const T x : logits) sum += std::exp(x - maximum);
    const auto target = static_cast<size_t>(targets[t]);
    const T factor = scale * (row_weights.empty() ? T(1) : row_weights[t]);
    r.loss += factor * (maximum + std::log(sum) - logits[target]);
    for (size_t v = 0; v < columns; ++v) {
      const T d = factor * (std::exp(logits[v] - maximum) / sum - (v == target ? T(1) : T(0)));
      for (size_t m = 0; m < width; ++m) {
        r.dhidden[t * width + m] += d * weight[v * width + m];
        r.dweight[v * width + m] += d * hidden[t * width + m];
      }
    }
  }
  return r;
}

}  // namespace ssm::reference
