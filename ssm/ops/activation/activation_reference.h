// The meaning of the activations, element by element.
#pragma once

#include <cmath>

namespace ssm::reference {

template <class T>
T gelu(T x) {
  return x * std::erfc(-x / std::sqrt(T(2))) / 2;
}

template <class T>
T gelu_slope(T x) {
  return std::erfc(-x / std::sqrt(T(2))) / 2 + x * std::exp(-x * x / 2) * T(0.3989422804014326779);
}

template <class T>
T gated_silu(T x, T z) {
  return x * z / (1 + std::exp(-z));
}

template <class T>
T silu_slope(T z) {
  const T s = 1 / (1 + std::exp(-z));
  return s * (1 + z * (1 - s));
}

}  // namespace ssm::reference
