#include "ssm/ops/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

constexpr double kBound = 5e-6;

// [T, M] with a row stride above M in half of the cases.
Tensor random_rows(int64_t T, int64_t M, Rng& rng) {
  const int64_t left = rng.below(2) ? rng.below(9) : 0;
  return test::random_normal({T, M + left}, rng, 2.0f).slice(1, left, left + M);
}

struct Case {
  int64_t T, M, groups;
  Tensor x, z, residual, weight;
  float eps;
  explicit Case(Rng& rng) {
    const int64_t part = 1 + rng.below(rng.below(4) ? 70 : 900);
    groups = 1 + rng.below(4);
    T = 1 + rng.below(12), M = part * groups;
    x = random_rows(T, M, rng), z = random_rows(T, M, rng), residual = random_rows(T, M, rng);
    if (rng.below(3)) weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  std::vector<double> weights() const {
    return weight.defined() ? test::to_doubles(weight) : std::vector<double>();
  }
  std::string name() const { return fmt::format("T {} M {} groups {}", T, M, groups); }
};

TEST(RmsNorm, EqualsTheReference) {
  test::for_each_target([] {
    Rng rng(11);
    for (int trial = 0; trial < 300; ++trial) {
      const Case c(rng);
      const auto y = reference::rms_norm<double>(test::to_doubles(c.x), c.weights(), c.M, 1, c.eps);
      EXPECT_LT(test::relative_error(rms_norm(c.x, c.weight, c.eps), y), kBound) << c.name();
    }
  });
}

TEST(RmsNorm, AddUpdatesTheResidual) {
  test::for_each_target([] {
    Rng rng(12);
    for (int trial = 0; trial < 300; ++trial) {
      const Case c(rng);
      auto residual = test::to_doubles(c.residual);
      const auto y =
          reference::add_rms_norm<double>(test::to_doubles(c.x), residual, c.weights(), c.M, c.eps);
      Tensor updated = c.residual;
      EXPECT_LT(test::relative_error(add_rms_norm(c.x, updated, c.weight, c.eps), y), kBound) << c.name();
      EXPECT_EQ(updated.raw(), c.residual.raw());
      EXPECT_LT(test::relative_error(c.residual, residual), kBound) << c.name();
    }
  });
}

TEST(RmsNorm, GatedTakesTheMeanOfEachGroup) {
  test::for_each_target([] {
    Rng rng(13);
    for (int trial = 0; trial < 300; ++trial) {
      const Case c(rng);
      const auto y = reference::gated_rms_norm<double>(test::to_doubles(c.x), test::to_doubles(c.z),
                                                       c.weights(), c.M, c.groups, c.eps);
      EXPECT_LT(test::relative_error(gated_rms_norm(c.x, c.z, c.weight, c.groups, c.eps), y), kBound)
          << c.name();
    }
  });
}

TEST(RmsNorm, GatesAtTheEndsOfTheRange) {
  const std::vector<float> x(6, 2.0f), z{-200.0f, -88.0f, -87.0f, 0.0f, 88.0f, 1e15f};
  const std::vector<double> xd(x.begin(), x.end()), zd(z.begin(), z.end());
  const Tensor y = gated_rms_norm(Tensor::from_values<float>(x, {6, 1}),
                                  Tensor::from_values<float>(z, {6, 1}), {}, 1, 1e-5f);
  EXPECT_LT(test::relative_error(y, reference::gated_rms_norm<double>(xd, zd, {}, 1, 1, 1e-5)), kBound);
}

// Row t of a batch is what the row gives alone, whatever the threads.
TEST(RmsNorm, RowsDoNotDependOnTheBatchOrTheThreads) {
  test::for_each_target([] {
    Rng rng(14);
    const int64_t T = 40, M = 1027 * 3;
    const Tensor x = test::random_normal({T, M}, rng), z = test::random_normal({T, M}, rng);
    const Tensor residual = test::random_normal({T, M}, rng), weight = test::random_normal({M}, rng);
    for (const int threads : {1, 2, 3, 5}) {
      const test::ThreadScope scope(threads);
      const Tensor plain = rms_norm(x, weight, 1e-5f), gated = gated_rms_norm(x, z, weight, 3, 1e-5f);
      Tensor sum = residual.clone();
      const Tensor added = add_rms_norm(x, sum, weight, 1e-5f);
      for (int64_t t = 0; t < T; ++t) {
        auto row = [&](const Tensor& v) { return v.slice(0, t, t + 1); };
        Tensor one = row(residual).clone();
        EXPECT_TRUE(test::same_bits(row(plain), rms_norm(row(x), weight, 1e-5f)));
        EXPECT_TRUE(test::same_bits(row(gated), gated_rms_norm(row(x), row(z), weight, 3, 1e-5f)));
        EXPECT_TRUE(test::same_bits(row(added), add_rms_norm(row(x), one, weight, 1e-5f)));
        EXPECT_TRUE(test::same_bits(row(sum), one));
      }
    }
  });
}

TEST(RmsNorm, NamesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 6});
  EXPECT_THROW(rms_norm(x, Tensor::zeros({5}), 1e-5f), Error);
  EXPECT_THROW(rms_norm({}, {}, 1e-5f), Error);
  Tensor other = Tensor::zeros({2, 5});
  EXPECT_THROW(add_rms_norm(x, other, {}, 1e-5f), Error);
  EXPECT_THROW(rms_norm(Tensor::zeros({6, 2}).transpose(0, 1), {}, 1e-5f), Error);
  try {
    gated_rms_norm(x, x, {}, 4, 1e-5f);
    FAIL() << "4 groups of a row of 6";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "gated_rms_norm: 4 groups do not divide a row of 6");
  }
}

}  // namespace
}  // namespace ssm
