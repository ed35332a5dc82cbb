// gradient_norm against a plain sum in f64. Bound 1e-7: squares are exact in f64, the norm is rounded once.
#include "ssm/ops/gradient_norm/gradient_norm.h"

#include <gtest/gtest.h>

#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

float value(const Tensor& t) { return t.values<float>()[0]; }

TEST(GradientNorm, EqualsThePlainSum) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 40; ++trial) {
      std::vector<Tensor> gradients;
      double sum = 0;
      for (int64_t i = 1 + rng.below(6); i > 0; --i) {
        Tensor g = test::random_normal({1 + rng.below(9), 1 + rng.below(trial % 5 ? 50 : 30000)}, rng);
        for (const double x : test::to_doubles(g)) sum += x * x;
        gradients.push_back(rng.below(2) ? g : g.transpose(0, 1));
      }
      const double norm = std::sqrt(sum), most = rng.below(2) ? norm * 0.3 : norm * 3;
      const GradientNorm r = gradient_norm(gradients, static_cast<float>(most));
      EXPECT_NEAR(value(r.norm), norm, 1e-7 * norm);
      EXPECT_NEAR(value(r.scale), std::min(1.0, most / norm), 1e-6);
      EXPECT_EQ(value(gradient_norm(gradients, 0).scale), 1.0f);
      const test::ThreadScope scope(static_cast<int>(2 + rng.below(4)));
      EXPECT_TRUE(test::same_bits(gradient_norm(gradients, 1).norm, r.norm));
    }
  });
}

TEST(GradientNorm, WhatIsNotFinite) {
  Rng rng(2);
  for (const float bad : {NAN, INFINITY}) {
    const std::vector<Tensor> gradients{test::random_normal({70}, rng), test::random_normal({3}, rng)};
    gradients[1].data<float>()[2] = bad;
    const GradientNorm r = gradient_norm(gradients, 1);
    EXPECT_FALSE(std::isfinite(value(r.norm)));
    EXPECT_TRUE(std::isnan(value(r.scale)));
  }
  const std::vector<Tensor> zeros{Tensor::zeros({5})};
  EXPECT_EQ(value(gradient_norm(zeros, 1).scale), 1.0f);
  const std::vector<Tensor> large{test::random_normal({5}, rng, 1e30f)};  // whose squares are no f32
  EXPECT_TRUE(std::isfinite(value(gradient_norm(large, 1).norm)));
}

TEST(GradientNorm, NamesWhatDoesNotFit) {
  const std::vector<Tensor> gaps{Tensor::zeros({2}), Tensor::zeros({2, 6}).slice(1, 0, 3)};
  try {
    gradient_norm(gaps, 1);
    FAIL() << "a gradient with gaps";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(),
                 "gradient_norm: gradient 1 is f32 [2, 3] on cpu, expected f32 without gaps on cpu");
  }
  EXPECT_THROW(gradient_norm({}, 1), Error);
}

}  // namespace
}  // namespace ssm
