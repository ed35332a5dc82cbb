// The meaning of layer_norm, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ssm::reference {

template <class T>
std::vector<T> layer_norm(const std::vector<T>& x, const std::vector<T>& weight, const std::vector<T>& bias,
                          T eps) {
  std::vector<T> y(x.size());
  const size_t M = weight.size();
  for (size_t row = 0; row < x.size(); row += M) {
    T mean = 0, square = 0;
    for (size_t i = 0; i < M; ++i) mean += x[row + i] / static_cast<T>(M);
    for (size_t i = 0; i < M; ++i) square += (x[row + i] - mean) * (x[row + i] - mean);
    const T inverse = 1 / std::sqrt(square / static_cast<T>(M) + eps);
    for (size_t i = 0; i < M; ++i) y[row + i] = (x[row + i] - mean) * inverse * weight[i] + bias[i];
  }
  return y;
}

template <class T>
struct LayerNormGradients {
  std::vector<T> x, weight, bias;
};

template <class T>
LayerNormGradients<T> layer_norm_backward(const std::vector<T>& x, const std::vector<T>& weight, T eps,
                                          const std::vector<T>& dy) {
  const size_t M = weight.size();
  LayerNormGradients<T> g{std::vector<T>(x.size()), std::vector<T>(M), std::vector<T>(M)};
  const std::vector<T> n = layer_norm(x, std::vector<T>(M, T(1)), std::vector<T>(M), eps);
  for (size_t row = 0; row < x.size(); row += M) {
    T mean = 0, square = 0, mean_g = 0, mean_gn = 0;
    for (size_t i = 0; i < M; ++i) mean += x[row + i] / static_cast<T>(M);
    for (size_t i = 0; i < M; ++i) square += (x[row + i] - mean) * (x[row + i] - mean);
    const T inverse = 1 / std::sqrt(square / static_cast<T>(M) + eps);
    for (size_t i = 0; i < M; ++i) {
      mean_g += dy[row + i] * weight[i] / static_cast<T>(M);
      mean_gn += dy[row + i] * weight[i] * n[row + i] / static_cast<T>(M);
      g.weight[i] += dy[row + i] * n[row + i];
      g.bias[i] += dy[row + i];
    }
    for (size_t i = 0; i < M; ++i)
      g.x[row + i] = inverse * (dy[row + i] * weight[i] - mean_g - n[row + i] * mean_gn);
  }
  return g;
}

}  // namespace ssm::reference
