// The meaning of adamw, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ssm::reference {

template <class T>
struct AdamWState {
  std::vector<T> p, m, v;
};

template <class T>
void adamw(AdamWState<T>& s, const std::vector<T>& g, T lr, T beta1, T beta2, T eps, T weight_decay,
           int64_t step, T grad_scale) {
  for (size_t i = 0; i < g.size(); ++i) {
    const T gradient = g[i] * grad_scale;
    s.p[i] -= lr * weight_decay * s.p[i];
    s.m[i] = beta1 * s.m[i] + (1 - beta1) * gradient;
    s.v[i] = beta2 * s.v[i] + (1 - beta2) * gradient * gradient;
    const T m = s.m[i] / (1 - std::pow(beta1, static_cast<T>(step)));
    const T v = s.v[i] / (1 - std::pow(beta2, static_cast<T>(step)));
    s.p[i] -= lr * m / (std::sqrt(v) + eps);
  }
}

}  // namespace ssm::reference
