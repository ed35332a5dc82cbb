#include "ssm/ops/activation/activation.h"

#include <gtest/gtest.h>

#include "ssm/autograd/tape.h"
#include "ssm/ops/activation/activation_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

struct Case {
  int64_t T, M;
  Tensor x, z, dy;
  explicit Case(Rng& rng) : T(1 + rng.below(9)), M(1 + rng.below(300)) {
    x = test::random_rows(T, M, rng, 3.0f), z = test::random_rows(T, M, rng, 3.0f);
    dy = test::random_normal({T, M}, rng);
  }
};

template <class F>
std::vector<double> each(const F& f, const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> y(a.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = f(a[i], b[i]);
  return y;
}

TEST(Activation, EqualsTheReference) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 100; ++trial) {
      const Case c(rng);
      const auto x = test::to_doubles(c.x), z = test::to_doubles(c.z);
      const auto gelus = each([](double a, double) { return reference::gelu(a); }, x, x);
      EXPECT_LT(test::relative_error(gelu(c.x), gelus), 2e-6);
      EXPECT_LT(test::relative_error(gated_silu(c.x, c.z), each(reference::gated_silu<double>, x, z)), 2e-6);
      for (const int threads : {1, 3}) {
        const test::ThreadScope scope(threads);
        EXPECT_TRUE(test::same_bits(gelu(c.x.slice(0, c.T - 1, c.T)), gelu(c.x).slice(0, c.T - 1, c.T)));
      }
    }
  });
}

TEST(Activation, GeluIsAccurateInItsTails) {
  const float values[] = {-12.0f, -6.0f, -3.0f, -1e-3f, 0.0f, 1e-3f, 0.5f, 3.0f, 6.0f, 30.0f, 1e4f, -1e4f};
  const Tensor y = gelu(Tensor::from_values<float>(values, {1, 12}));
  for (size_t i = 0; i < 12; ++i) {
    const double exact = reference::gelu(static_cast<double>(values[i]));
    EXPECT_NEAR(y.data<float>()[i], exact, 1e-5 * std::abs(exact) + 1e-30) << values[i];
  }
}

TEST(Activation, TheTapeEqualsTheReference) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 60; ++trial) {
      const Case c(rng);
      const auto xs = test::to_doubles(c.x), zs = test::to_doubles(c.z), dys = test::to_doubles(c.dy);
      const auto gradients = [&](bool gated) {
        Tensor x = c.x.clone(), z = c.z.clone();
        watch(x), watch(z);
        Tape tape;
        Tensor y;
        {
          const RecordScope recording(&tape);
          y = gated ? gated_silu(x, z) : gelu(x);
        }
        tape.backward(y, c.dy.clone());
        return std::pair(gradient_of(x), gradient_of(z));
      };
      const auto of_gelu = each([](double x, double g) { return g * reference::gelu_slope(x); }, xs, dys);
      EXPECT_LT(test::relative_error(gradients(false).first, of_gelu), 2e-6);
      const auto [dx, dz] = gradients(true);
      const auto silu = each([](double z, double g) { return reference::gated_silu(g, z); }, zs, dys);
      auto slopes = each([](double z, double g) { return g * reference::silu_slope(z); }, zs, dys);
      for (size_t i = 0; i < slopes.size(); ++i) slopes[i] *= xs[i];
      EXPECT_LT(test::relative_error(dx, silu), 2e-6);
      EXPECT_LT(test::relative_error(dz, slopes), 2e-6);
    }
  });
}

TEST(Activation, TheReferenceSlopesAreTheDerivatives) {
  for (double x = -6; x < 6; x += 0.37) {
    const double step = 1e-5;
    EXPECT_NEAR(reference::gelu_slope(x),
                (reference::gelu(x + step) - reference::gelu(x - step)) / (2 * step), 1e-8);
    EXPECT_NEAR(reference::silu_slope(x),
                (reference::gated_silu(1.0, x + step) - reference::gated_silu(1.0, x - step)) / (2 * step),
                1e-8);
  }
}

TEST(Activation, NamesWhatDoesNotFit) {
  EXPECT_THROW(gelu({}), Error);
  EXPECT_THROW(gated_silu(Tensor::zeros({2, 3}), Tensor::zeros({2, 4})), Error);
}

}  // namespace
}  // namespace ssm
