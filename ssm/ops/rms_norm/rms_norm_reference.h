// The meaning of the RMS norms, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ssm::reference {

// Each row of x [T, M] is normalised in `groups` equal parts; an empty weight is all ones.
template <class T>
std::vector<T> rms_norm(const std::vector<T>& x, const std::vector<T>& weight, int64_t M, int64_t groups,
                        T eps) {
  std::vector<T> y(x.size());
  const auto row = static_cast<size_t>(M), part = static_cast<size_t>(M / groups);
  for (size_t begin = 0; begin < x.size(); begin += part) {
    T square = 0;
    for (size_t i = begin; i < begin + part; ++i) square += x[i] * x[i];
    const T factor = 1 / std::sqrt(square / static_cast<T>(part) + eps);
    for (size_t i = begin; i < begin + part; ++i)
      y[i] = x[i] * factor * (weight.empty() ? T(1) : weight[i % row]);
  }
  return y;
}

template <class T>
std::vector<T> add_rms_norm(const std::vector<T>& x, std::vector<T>& residual, const std::vector<T>& weight,
                            int64_t M, T eps) {
  for (size_t i = 0; i < x.size(); ++i) residual[i] += x[i];
  return rms_norm(residual, weight, M, int64_t{1}, eps);
}

template <class T>
std::vector<T> gated_rms_norm(std::vector<T> x, const std::vector<T>& z, const std::vector<T>& weight,
                              int64_t M, int64_t groups, T eps) {
  for (size_t i = 0; i < x.size(); ++i) x[i] *= z[i] / (1 + std::exp(-z[i]));
  return rms_norm(x, weight, M, groups, eps);
}

}  // namespace ssm::reference
