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

template <class T>
struct LinearGrads {
  std::vector<T> dx, dweight, dbias;
};

// dy [rows, N] -> dx = dy W, dW = dy^T x, db = sum of dy.
template <class T>
LinearGrads<T> linear_backward(const std::vector<T>& x, const std::vector<T>& weight,
                               const std::vector<T>& dy, int64_t rows, int64_t N, int64_t K) {
  LinearGrads<T> g{std::vector<T>(x.size()), std::vector<T>(weight.size()),
                   std::vector<T>(static_cast<size_t>(N))};
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < N; ++n) {
      const T d = dy[static_cast<size_t>(t * N + n)];
      g.dbias[static_cast<size_t>(n)] += d;
      for (int64_t k = 0; k < K; ++k) {
        const auto xk = static_cast<size_t>(t * K + k), wk = static_cast<size_t>(n * K + k);
        g.dx[xk] += d * weight[wk];
        g.dweight[wk] += d * x[xk];
      }
    }
  }
  return g;
}

}  // namespace ssm::reference
