// What tests of backwards share: gradients by central differences of an f64 forward.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "ssm/ops/test_util.h"

namespace ssm::test {

// [T, M] with a row stride above M in half of the cases.
inline Tensor random_rows(int64_t T, int64_t M, Rng& rng, float scale = 1.0f) {
  const int64_t left = rng.below(2) ? rng.below(9) : 0, right = rng.below(2) ? rng.below(9) : 0;
  return random_normal({T, left + M + right}, rng, scale).slice(1, left, left + M);
}

inline Tensor filled(const Shape& shape, float value) {
  Tensor t = Tensor::empty(shape);
  for (float& x : t.values<float>()) x = value;
  return t;
}

// `gradient` is that of sum_i dy[i] forward(x)[i] in every element of x. The differences are good to
// step^2 f''' and to 1e-16 / step of the sum: some 1e-10 for operands near 1 and a smooth forward.
template <class Forward>
void expect_gradient(const std::vector<double>& gradient, std::vector<double> x,
                     const std::vector<double>& dy, const Forward& forward, double bound) {
  const auto loss = [&] {
    const std::vector<double> y = forward(x);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * dy[i];
    return sum;
  };
  ASSERT_EQ(gradient.size(), x.size());
  double square = 0;
  for (const double g : gradient) square += g * g;
  const double scale = std::sqrt(square / static_cast<double>(std::max<size_t>(1, x.size()))) + 1e-30;
  for (size_t i = 0; i < x.size(); ++i) {
    const double at = x[i], step = 1e-5 * std::max(1.0, std::abs(at));
    x[i] = at + step;
    const double high = loss();
    x[i] = at - step;
    const double low = loss();
    x[i] = at;
    EXPECT_NEAR(gradient[i], (high - low) / (2 * step), bound * (std::abs(gradient[i]) + scale)) << i;
  }
}

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
