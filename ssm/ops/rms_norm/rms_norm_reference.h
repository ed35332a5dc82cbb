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

template <class T>
struct RmsNormGrads {
  std::vector<T> dx, dz, dweight;
};

// Of gated_rms_norm, or without z of rms_norm in groups; dx is also what add_rms_norm adds to dresidual.
template <class T>
RmsNormGrads<T> rms_norm_backward(const std::vector<T>& x, const std::vector<T>& z,
                                  const std::vector<T>& weight, const std::vector<T>& dy, int64_t M,
                                  int64_t groups, T eps) {
  const auto row = static_cast<size_t>(M), part = static_cast<size_t>(M / groups);
  RmsNormGrads<T> g{std::vector<T>(x.size()), std::vector<T>(z.size()), std::vector<T>(row)};
  const auto sigmoid = [&](size_t i) { return 1 / (1 + std::exp(-z[i])); };
  for (size_t begin = 0; begin < x.size(); begin += part) {
    T square = 0, dot = 0;
    std::vector<T> u(part);
    for (size_t i = 0; i < part; ++i) {
      const size_t at = begin + i;
      u[i] = z.empty() ? x[at] : x[at] * z[at] * sigmoid(at);
      square += u[i] * u[i];
      dot += dy[at] * (weight.empty() ? T(1) : weight[at % row]) * u[i];
    }
    const T count = static_cast<T>(part), r = 1 / std::sqrt(square / count + eps);
    for (size_t i = 0; i < part; ++i) {
      const size_t at = begin + i;
      const T w = weight.empty() ? T(1) : weight[at % row];
      const T du = r * dy[at] * w - u[i] * r * r * r * dot / count;
      g.dweight[at % row] += dy[at] * u[i] * r;
      g.dx[at] = z.empty() ? du : du * z[at] * sigmoid(at);
      if (!z.empty()) g.dz[at] = du * x[at] * sigmoid(at) * (1 + z[at] * (1 - sigmoid(at)));
    }
  }
  return g;
}

}  // namespace ssm::reference
