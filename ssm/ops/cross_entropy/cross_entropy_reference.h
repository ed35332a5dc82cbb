// The meaning of cross_entropy, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ssm::reference {

template <class T>
std::vector<T> cross_entropy(const std::vector<T>& logits, const std::vector<int32_t>& targets, int64_t V,
                             int64_t vocab) {
  std::vector<T> nll;
  for (size_t t = 0; t < targets.size(); ++t) {
    const T* row = logits.data() + static_cast<int64_t>(t) * V;
    T maximum = row[0], sum = 0;
    for (int64_t v = 0; v < vocab; ++v) maximum = std::max(maximum, row[v]);
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - maximum);
    nll.push_back(targets[t] < 0 ? T(0) : maximum + std::log(sum) - row[targets[t]]);
  }
  return nll;
}

}  // namespace ssm::reference
