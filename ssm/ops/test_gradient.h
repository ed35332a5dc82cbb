// What tests of backwards share: gradients by central differences of an f64 forward.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
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

}  // namespace ssm::test
