// The meaning of linear, in plain loops.
#pragma once

#include <cstdint>
#include <vector>

namespace ssm::reference {

// x [T, K], weight [N, K], bias [N] or empty -> [T, N]
template <class T>
std::vector<T> linear(const std::vector<T>& x, const std::vector<T>& weight, const std::vector<T>& bias,
                      int64_t rows, int64_t N, int64_t K) {
  std::vector<T> y;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      T sum = bias.empty() ? T(0) : bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < K; ++k)
        sum += x[static_cast<size_t>(t * K + k)] * weight[static_cast<size_t>(n * K + k)];
      y.push_back(sum);
    }
  }
  return y;
}

}  // namespace ssm::reference
