// exp, silu and softplus against double over their whole range, for every target.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "ssm/ops/simd/test_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/simd/math_test.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

void map_exp(const float* x, float* y, size_t n) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    store_n_f32(d, exp_f32(d, load_n_f32(d, x + i, n - i)), y + i, n - i);
}
void map_silu(const float* x, float* y, size_t n) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    store_n_f32(d, silu_f32(d, load_n_f32(d, x + i, n - i)), y + i, n - i);
}
void map_sigmoid(const float* x, float* y, size_t n) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    store_n_f32(d, sigmoid_f32(d, load_n_f32(d, x + i, n - i)), y + i, n - i);
}
void map_silu_slope(const float* x, float* y, size_t n) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < n; i += hn::Lanes(d))
    store_n_f32(d, silu_slope_f32(d, load_n_f32(d, x + i, n - i)), y + i, n - i);
}
void map_softplus(const float* x, float* y, size_t n) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < n; i += hn::Lanes(d)) {
    store_n_f32(d, softplus_f32(d, load_n_f32(d, x + i, n - i)), y + i, n - i);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(map_exp);
HWY_EXPORT(map_silu);
HWY_EXPORT(map_sigmoid);
HWY_EXPORT(map_silu_slope);
HWY_EXPORT(map_softplus);

namespace {

// Every sign and exponent with some mantissas, and a fine grid where the functions bend.
std::vector<float> whole_range() {
  std::vector<float> x;
  for (uint32_t top = 0; top < 0x10000; top += 3) {
    const float v = std::bit_cast<float>((top << 16) | (top * 40503u & 0xffffu));
    if (std::isfinite(v)) x.push_back(v);
  }
  for (int i = -105 * 128; i <= 105 * 128; ++i) x.push_back(static_cast<float>(i) / 128.0f);
  return x;
}

// Errors in units of the last place of the exact value; what is below 1e-36 may be 0.
template <class Map, class Exact>
void expect_close(const Map& map, const Exact& exact, double ulps) {
  const std::vector<float> x = whole_range();
  std::vector<float> y(x.size());
  map(x.data(), y.data(), x.size());
  const double smallest = std::numeric_limits<float>::min();
  int wrong = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double e = exact(static_cast<double>(x[i]));
    const double ulp = std::exp2(std::floor(std::log2(std::max(std::abs(e), smallest))) - 23);
    const bool tiny = std::abs(e) < 1e-36 && std::abs(static_cast<double>(y[i])) < 1e-36;
    if (std::abs(y[i] - e) <= ulps * ulp || tiny) continue;
    if (++wrong <= 5) ADD_FAILURE() << "f(" << x[i] << ") = " << y[i] << ", expected " << e;
  }
  EXPECT_EQ(wrong, 0);
}

TEST(Math, Exp) {
  test::for_each_target([] {
    const double largest = std::exp(static_cast<double>(88.3762626647949f));  // held there
    expect_close(
        HWY_DYNAMIC_DISPATCH(map_exp), [&](double x) { return std::min(std::exp(x), largest); }, 3);
    const float x[] = {-INFINITY, INFINITY, 0.0f, -0.0f, -88.0f};
    float y[5];
    HWY_DYNAMIC_DISPATCH(map_exp)(x, y, 5);
    EXPECT_EQ(y[0], 0.0f);
    EXPECT_TRUE(std::isfinite(y[1]) && y[1] > 2e38f);
    EXPECT_EQ(y[2], 1.0f);
    EXPECT_EQ(y[3], 1.0f);
    EXPECT_EQ(y[4], 0.0f);
  });
}

TEST(Math, Silu) {
  test::for_each_target([] {
    expect_close(
        HWY_DYNAMIC_DISPATCH(map_silu), [](double x) { return x / (1 + std::exp(-x)); }, 5);
    const float x[] = {-INFINITY, INFINITY, -3e38f, std::numeric_limits<float>::quiet_NaN()};
    float y[4];
    HWY_DYNAMIC_DISPATCH(map_silu)(x, y, 4);
    EXPECT_EQ(y[0], 0.0f);
    EXPECT_EQ(y[1], INFINITY);
    EXPECT_EQ(y[2], 0.0f);
    EXPECT_TRUE(std::isnan(y[3]));
  });
}

TEST(Math, SigmoidAndTheSlopeOfSilu) {
  test::for_each_target([] {
    expect_close(
        HWY_DYNAMIC_DISPATCH(map_sigmoid), [](double x) { return 1 / (1 + std::exp(-x)); }, 5);
    const std::vector<float> x = whole_range();
    std::vector<float> y(x.size());
    HWY_DYNAMIC_DISPATCH(map_silu_slope)(x.data(), y.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {  // the slope has a zero at -1.28: absolute
      const double sigmoid = 1 / (1 + std::exp(-static_cast<double>(x[i])));
      const double exact = sigmoid == 0 ? 0.0 : sigmoid * (1 + static_cast<double>(x[i]) * (1 - sigmoid));
      EXPECT_NEAR(y[i], exact, 1e-6) << x[i];
    }
  });
}

TEST(Math, Softplus) {
  test::for_each_target([] {
    expect_close(
        HWY_DYNAMIC_DISPATCH(map_softplus),
        [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }, 5);
  });
}

// A lane's result does not depend on its place in a vector, and tails write no further than they are long.
TEST(Math, EveryLaneIsComputedAlike) {
  test::for_each_target([] {
    const std::vector<float> x = whole_range();
    std::vector<float> whole(x.size());
    HWY_DYNAMIC_DISPATCH(map_softplus)(x.data(), whole.data(), x.size());
    for (size_t n = 1; n < 40; ++n) {
      const size_t at = x.size() - n * 37;
      std::vector<float> part(n + 1, -7.0f);
      HWY_DYNAMIC_DISPATCH(map_softplus)(x.data() + at, part.data(), n);
      for (size_t i = 0; i < n; ++i) EXPECT_EQ(part[i], whole[at + i]);
      EXPECT_EQ(part[n], -7.0f);
    }
  });
}

}  // namespace
}  // namespace ssm
#endif  // HWY_ONCE
