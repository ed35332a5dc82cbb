#include "ssm/ops/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include "ssm/ops/cross_entropy/cross_entropy_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

TEST(CrossEntropy, EqualsTheReferenceOnEveryTarget) {
  Rng rng(1);
  test::for_each_target([&] {
    for (int trial = 0; trial < 300; ++trial) {
      const int64_t T = 1 + rng.below(5), V = 1 + rng.below(3000), vocab = 1 + rng.below(V);
      const Tensor logits = test::random_normal({T, V}, rng, 5.0f, 20.0f);
      std::vector<int32_t> targets;
      for (int64_t t = 0; t < T; ++t) targets.push_back(static_cast<int32_t>(rng.below(vocab + 1)) - 1);
      const CrossEntropy result = cross_entropy(logits, Tensor::from_values<int32_t>(targets, {T}), vocab);
      const std::vector<double> expected =
          reference::cross_entropy(test::to_doubles(logits), targets, V, vocab);
      for (int64_t t = 0; t < T; ++t) {
        const size_t i = static_cast<size_t>(t);
        EXPECT_NEAR(result.nll.values<float>()[i], expected[i], 1e-5 + 1e-6 * expected[i]) << T << " " << V;
        const float* row = logits.data<float>() + t * V;
        EXPECT_EQ(result.argmax.values<int32_t>()[i], std::max_element(row, row + vocab) - row);
      }
    }
  });
}

TEST(CrossEntropy, SkipsScoresThatAreNotNumbersAndNamesBadTargets) {
  const std::vector<float> scores{NAN, -INFINITY, 1, 1};
  const Tensor logits = Tensor::from_values<float>(scores, {1, 4});
  const std::vector<int32_t> none{-1}, bad{4};
  test::for_each_target([&] {
    EXPECT_EQ(cross_entropy(logits, Tensor::from_values<int32_t>(none, {1}), 4).argmax.values<int32_t>()[0],
              2);
    EXPECT_THROW(cross_entropy(logits, Tensor::from_values<int32_t>(bad, {1}), 4), Error);
    EXPECT_THROW(cross_entropy(logits, Tensor::from_values<int32_t>(none, {1}), 2), Error);
  });
}

}  // namespace
}  // namespace ssm
