// The loss and its gradients against the f64 reference, itself against central differences.
//
// Bounds: the differences are good to 1e-7. In f32: the loss to 1e-6 of itself and of the count (errors of
// the logits, a few units, enter it directly); the gradients to 1e-5: a logit of some ten units is off by
// 1e-6, and so, relatively, is its exponential.
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;
using test::random_rows;
using test::to_doubles;

struct Case {
  int64_t T, M, V, vocab;
  float scale;
  Tensor hidden, weight, row_weights;
  std::vector<int32_t> targets;
  Case(Rng& rng, int64_t rows, int64_t width, int64_t words, DType dtype = DType::f32) {
    T = 1 + rng.below(rows), M = 1 + rng.below(width), V = 1 + rng.below(words), vocab = 1 + rng.below(V);
    scale = rng.below(2) ? 1.0f : 0.01f;
    hidden = random_rows(T, M, rng, 2.0f / std::sqrt(static_cast<float>(M))),
    weight = random_rows(V, M, rng).to(dtype);
    if (rng.below(2)) row_weights = test::random_normal({T}, rng, 0.5f, 1.0f);
    const int64_t ignored = rng.below(3);  // none, some, most
    for (int64_t t = 0; t < T; ++t) {
      const bool none = rng.below(4) < (ignored == 0 ? 0 : ignored == 1 ? 1 : 3);
      targets.push_back(none ? -1 : static_cast<int32_t>(rng.below(vocab)));
    }
  }
  Doubles weights() const { return row_weights.defined() ? to_doubles(row_weights) : Doubles(); }
  auto expected() const {
    return reference::linear_cross_entropy<double>(to_doubles(hidden), to_doubles(weight), targets, weights(),
                                                   scale, vocab, M);
  }
  LinearCrossEntropy run(const LinearCrossEntropyGrads& grads) const {
    return linear_cross_entropy(hidden, Weight{weight}, Tensor::from_values<int32_t>(targets, {T}),
                                row_weights, scale, vocab, grads);
  }
  std::string name() const { return fmt::format("T {} M {} V {} vocab {}", T, M, V, vocab); }
};

double loss_of(const LinearCrossEntropy& r) { return r.loss.values<double>()[0]; }

TEST(LinearCrossEntropy, TheReferenceEqualsTheDifferences) {
  Rng rng(1);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c(rng, 5, 5, 7);
    const auto expected = c.expected();
    const Doubles h = to_doubles(c.hidden), w = to_doubles(c.weight);
    const auto loss = [&](const Doubles& h_, const Doubles& w_) {
      return Doubles{
          reference::linear_cross_entropy<double>(h_, w_, c.targets, c.weights(), c.scale, c.vocab, c.M)
              .loss};
    };
    test::expect_gradient(
        expected.dhidden, h, {1.0}, [&](const Doubles& v) { return loss(v, w); }, 1e-6);
    test::expect_gradient(
        expected.dweight, w, {1.0}, [&](const Doubles& v) { return loss(h, v); }, 1e-6);
  }
}

TEST(LinearCrossEntropy, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 120; ++trial) {
      const DType dtype = std::array{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(trial % 3)];
      const Case c(rng, trial % 10 ? 30 : 200, 60, trial % 7 ? 90 : 3000, dtype);
      auto expected = c.expected();
      const Tensor dhidden = random_rows(c.T, c.M, rng), dweight = random_rows(c.V, c.M, rng);
      const Doubles before = to_doubles(dweight);
      for (size_t i = 0; i < before.size(); ++i) expected.dweight[i] += before[i];
      const LinearCrossEntropy r = c.run({dhidden, dweight});
      EXPECT_EQ(r.count.values<int64_t>()[0], expected.count);
      EXPECT_NEAR(loss_of(r), expected.loss,
                  1e-6 * (std::abs(expected.loss) + c.scale * static_cast<double>(expected.count)))
          << c.name();
      EXPECT_LT(test::relative_error(dhidden, expected.dhidden), 1e-5) << c.name();
      EXPECT_LT(test::relative_error(dweight, expected.dweight), 1e-5) << c.name();
      EXPECT_EQ(loss_of(c.run({})), loss_of(r));  // no gradient, the same loss
    }
  });
}

// Enough rows of enough words for several blocks; a row without a target takes no part.
TEST(LinearCrossEntropy, ManyBlocksAndTheSameBitsWhateverTheThreads) {
  Rng rng(3);
  const int64_t T = 200, M = 24, V = 200'000;  // 64 rows a block
  Case c(rng, 1, 1, 1);
  c.T = T, c.M = M, c.V = c.vocab = V, c.scale = 1.0f / 150, c.row_weights = {};
  c.hidden = test::random_normal({T, M}, rng), c.weight = test::random_normal({V, M}, rng, 0.3f);
  c.targets.clear();
  for (int64_t t = 0; t < T; ++t) c.targets.push_back(rng.below(4) ? static_cast<int32_t>(rng.below(V)) : -1);
  const auto run = [&](int threads) {
    const test::ThreadScope scope(threads);
    const LinearCrossEntropyGrads grads{Tensor::empty({T, M}), Tensor::zeros({V, M})};
    return std::pair(loss_of(c.run(grads)), grads);
  };
  const auto [loss, grads] = run(1);
  const auto expected = c.expected();
  EXPECT_NEAR(loss, expected.loss, 2e-6 * expected.loss);
  EXPECT_LT(test::relative_error(grads.dhidden, expected.dhidden), 1e-5);
  EXPECT_LT(test::relative_error(grads.dweight, expected.dweight), 1e-5);
  for (const int threads : {2, 3}) {
    const auto [again, same] = run(threads);
    EXPECT_EQ(again, loss);
    EXPECT_TRUE(test::same_bits(same.dhidden, grads.dhidden) && test::same_bits(same.dweight, grads.dweight));
  }
}

TEST(LinearCrossEntropy, NothingToLearn) {
  const Tensor hidden = test::filled({3, 4}, 1), weight = test::filled({5, 4}, 1);
  const std::vector<int32_t> none{-1, -1, -1};
  const LinearCrossEntropyGrads grads{test::filled({3, 4}, 7), test::filled({5, 4}, 7)};
  const auto r =
      linear_cross_entropy(hidden, Weight{weight}, Tensor::from_values<int32_t>(none, {3}), {}, 1, 5, grads);
  EXPECT_EQ(loss_of(r), 0);
  EXPECT_EQ(r.count.values<int64_t>()[0], 0);
  EXPECT_EQ(to_doubles(grads.dhidden), Doubles(12, 0.0));
  EXPECT_EQ(to_doubles(grads.dweight), Doubles(20, 7.0));
  const Tensor empty = Tensor::zeros({0, 4});
  EXPECT_EQ(loss_of(linear_cross_entropy(empty, Weight{weight}, Tensor::zeros({0}, DType::i32), {}, 1, 5)),
            0);
}

TEST(LinearCrossEntropy, NanIsSeenAndLargeLogitsAreNot) {
  test::for_each_target([] {
    for (const int64_t V : {1, 3, 16, 40}) {
      for (int64_t at = 0; at < V; at += 7) {
        const Tensor hidden = test::filled({2, 1}, 1), weight = test::filled({V, 1}, 1);
        const std::vector<int32_t> targets{0, -1};
        const Tensor ids = Tensor::from_values<int32_t>(targets, {2});
        const auto run = [&](float value) {
          weight.data<float>()[at] = value;
          const LinearCrossEntropyGrads grads{Tensor::zeros({2, 1}), Tensor::zeros({V, 1})};
          const double loss = loss_of(linear_cross_entropy(hidden, Weight{weight}, ids, {}, 1, V, grads));
          EXPECT_EQ(grads.dhidden.data<float>()[1], 0.0f);
          return std::pair(loss, grads.dhidden.data<float>()[0]);
        };
        const auto [nan, dnan] = run(NAN);
        EXPECT_TRUE(std::isnan(nan) && std::isnan(dnan)) << V << " " << at;
        for (const float large : {3e38f, -3e38f}) {
          const auto [loss, dhidden] = run(large);
          EXPECT_TRUE(std::isfinite(loss) && !std::isnan(dhidden)) << V << " " << at << " " << large;
        }
      }
    }
  });
}

TEST(LinearCrossEntropy, NamesWhatDoesNotFit) {
  const Tensor hidden = Tensor::zeros({2, 3}), weight = Tensor::zeros({4, 3});
  const auto text = [&](std::vector<int32_t> targets, int64_t vocab,
                        const LinearCrossEntropyGrads& grads = {},
                        const Tensor& row_weights = {}) -> std::string {
    try {
      linear_cross_entropy(hidden, Weight{weight}, Tensor::from_values<int32_t>(targets, {2}), row_weights, 1,
                           vocab, grads);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(text({0, 3}, 3), "linear_cross_entropy: target 3 in row 1 is outside the vocabulary of 3");
  EXPECT_EQ(text({-2, 0}, 3), "linear_cross_entropy: target -2 in row 0 is outside the vocabulary of 3");
  EXPECT_EQ(text({0, 0}, 5), "linear_cross_entropy: a vocabulary of 5 of weight [4, 3]");
  EXPECT_EQ(text({0, 0}, 4, {.dhidden = weight}),
            "linear_cross_entropy: dhidden has shape [4, 3], expected [2, 3]");
  EXPECT_EQ(text({0, 0}, 4, {.dweight = hidden}),
            "linear_cross_entropy: dweight has shape [2, 3], expected [4, 3]");
  EXPECT_EQ(text({0, 0}, 4, {}, Tensor::zeros({3})),
            "linear_cross_entropy: row_weights has shape [3], expected [2]");
}

}  // namespace
}  // namespace ssm
