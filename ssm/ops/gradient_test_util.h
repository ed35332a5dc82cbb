// What the tests of backward functions share.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "ssm/ops/test_util.h"

namespace ssm::test {

// The gradient of f() with respect to each element of x, which f reads, by central differences with one step
// of extrapolation: in double the error is some 1e-9 of f's size.
inline std::vector<double> central_differences(std::vector<double>& x, const std::function<double()>& f,
                                               double step = 1e-3) {
  std::vector<double> gradient;
  for (double& element : x) {
    const double at = element;
    const auto slope = [&](double h) {
      element = at + h;
      const double above = f();
      element = at - h;
      const double below = f();
      return (above - below) / (2 * h);
    };
    gradient.push_back((4 * slope(step / 2) - slope(step)) / 3);
    element = at;
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// relative_error of two vectors of doubles.
inline double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  const double scale = std::sqrt(dot(b, b) / static_cast<double>(std::max<size_t>(1, b.size()))) + 1e-30;
  if (a.size() != b.size()) return INFINITY;
  for (size_t i = 0; i < b.size(); ++i) {
    const double error = std::abs(a[i] - b[i]) / (std::abs(b[i]) + scale);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

// Rows [T, n] inside a wider tensor of other values, or alone.
inline Tensor rows_somewhere(int64_t T, int64_t n, Rng& rng) {
  if (rng.below(2) == 0) return random_normal({T, n}, rng, 1e6f);
  const int64_t before = rng.below(5), after = rng.below(5);
  return random_normal({T, before + n + after}, rng, 1e6f).slice(1, before, before + n);
}

}  // namespace ssm::test
