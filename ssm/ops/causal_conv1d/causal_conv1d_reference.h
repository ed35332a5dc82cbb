// The meaning of causal_conv1d on one sequence, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "ssm/ops/causal_conv1d/causal_conv1d.h"

namespace ssm::reference {

// x [T, C], weight [C, K], bias [C] or empty; state [K - 1, C] is read, and updated to the last K - 1 inputs.
template <class T>
std::vector<T> causal_conv1d(const std::vector<T>& x, const std::vector<T>& weight,
                             const std::vector<T>& bias, Activation activation, int64_t C, int64_t K,
                             std::vector<T>& state) {
  std::vector<T> inputs = state;
  inputs.insert(inputs.end(), x.begin(), x.end());
  std::vector<T> y(x.size());
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    const int64_t c = i % C;
    T sum = bias.empty() ? T(0) : bias[static_cast<size_t>(c)];
    for (int64_t k = 0; k < K; ++k) {
      sum += weight[static_cast<size_t>(c * K + k)] * inputs[static_cast<size_t>(i + k * C)];
    }
    y[static_cast<size_t>(i)] = activation == Activation::silu ? sum / (1 + std::exp(-sum)) : sum;
  }
  state.assign(inputs.end() - (K - 1) * C, inputs.end());
  return y;
}

template <class T>
struct CausalConv1dGradients {
  std::vector<T> x, weight, bias;  // laid out as the operands
};

// The gradients for dy [T, C]; `initial` [K - 1, C] (causal_conv1d.h has the formulas).
template <class T>
CausalConv1dGradients<T> causal_conv1d_backward(const std::vector<T>& x, const std::vector<T>& weight,
                                                const std::vector<T>& bias, Activation activation, int64_t C,
                                                int64_t K, const std::vector<T>& initial,
                                                const std::vector<T>& dy) {
  std::vector<T> inputs = initial;
  inputs.insert(inputs.end(), x.begin(), x.end());
  CausalConv1dGradients<T> g{std::vector<T>(x.size()), std::vector<T>(weight.size()),
                             std::vector<T>(bias.size())};
  for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
    const int64_t c = i % C;
    T sum = bias.empty() ? T(0) : bias[static_cast<size_t>(c)], ds = dy[static_cast<size_t>(i)];
    for (int64_t k = 0; k < K; ++k)
      sum += weight[static_cast<size_t>(c * K + k)] * inputs[static_cast<size_t>(i + k * C)];
    const T sigmoid = 1 / (1 + std::exp(-sum));
    if (activation == Activation::silu) ds *= sigmoid * (1 + sum * (1 - sigmoid));
    if (!bias.empty()) g.bias[static_cast<size_t>(c)] += ds;
    for (int64_t k = 0; k < K; ++k) {
      g.weight[static_cast<size_t>(c * K + k)] += ds * inputs[static_cast<size_t>(i + k * C)];
      const int64_t to = i + (k - (K - 1)) * C;  // before the first token: the initial window
      if (to >= 0) g.x[static_cast<size_t>(to)] += ds * weight[static_cast<size_t>(c * K + k)];
    }
  }
  return g;
}

}  // namespace ssm::reference
