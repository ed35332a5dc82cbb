#include "ssm/ops/elementwise/elementwise.h"

#include <gtest/gtest.h>

#include "ssm/autograd/tape.h"
#include "ssm/ops/test_gradient.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

TEST(Elementwise, NegativeExpKeepsTheLayout) {
  Rng rng(1);
  const Tensor x = test::random_normal({5, 7}, rng);
  for (const Tensor& t : {x, x.transpose(0, 1)}) {
    const Tensor y = negative_exp(t);
    EXPECT_EQ(y.stride(0), t.stride(0));
    std::vector<double> expected = test::to_doubles(t);
    for (double& v : expected) v = -std::exp(v);
    EXPECT_LT(test::relative_error(y, expected), 1e-6);
  }
}

// y = -exp(x), dy/dx = y: against central differences of the forward in double.
TEST(Elementwise, NegativeExpBackwardInAnyLayout) {
  Rng rng(3);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t rows = 1 + rng.below(9), columns = 1 + rng.below(9);
    const auto tensor = [&] {
      return rng.below(2) ? test::random_normal({rows, columns}, rng)
                          : test::random_normal({columns, rows}, rng).transpose(0, 1);
    };
    const Tensor x = tensor(), dy = tensor(), dx = tensor();
    std::vector<double> expected = test::to_doubles(dx);
    const std::vector<double> xs = test::to_doubles(x), dys = test::to_doubles(dy);
    for (size_t i = 0; i < xs.size(); ++i) {
      expected[i] += dys[i] * (-std::exp(xs[i] + 1e-5) + std::exp(xs[i] - 1e-5)) / 2e-5;
    }
    negative_exp_backward(negative_exp(x), dy, dx);
    EXPECT_LT(test::relative_error(dx, expected), 1e-6);
  }
  const Tensor heads = test::random_normal({7}, rng), dy = test::random_normal({7}, rng),
               dx = Tensor::zeros({7});
  negative_exp_backward(heads, dy, dx);
  for (int64_t i = 0; i < 7; ++i)
    EXPECT_EQ(dx.data<float>()[i], heads.data<float>()[i] * dy.data<float>()[i]);
  EXPECT_THROW(negative_exp_backward(heads, dy, Tensor::zeros({6})), Error);
}

TEST(Elementwise, SumLeavesItsOperandsAndGivesBothTheGradient) {
  Rng rng(8);
  Tensor a = test::random_normal({3, 5}, rng), b = test::random_normal({3, 9}, rng).slice(1, 2, 7);
  const Tensor before = a.clone(), dy = test::random_normal({3, 5}, rng);
  Tensor other = b.clone();
  watch(a), watch(other);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    y = sum(a, other);
  }
  EXPECT_TRUE(test::same_bits(a, before));
  EXPECT_TRUE(test::same_bits(y, sum(a, b)));
  EXPECT_TRUE(test::same_bits(y, add_scaled(before, b, 1.0f)));
  tape.backward(y, dy);
  EXPECT_TRUE(test::same_bits(gradient_of(a), dy));
  EXPECT_TRUE(test::same_bits(gradient_of(other), dy));
  EXPECT_THROW(sum(a, Tensor::zeros({3, 4})), Error);
}

TEST(Elementwise, AddScaledAddsInPlace) {
  Rng rng(3);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t T = 1 + rng.below(40), M = 1 + rng.below(40);
    const Tensor y = test::random_normal({T, M + 3}, rng).slice(1, 1, M + 1),
                 x = test::random_normal({T, M}, rng);
    std::vector<double> expected = test::to_doubles(y);
    const std::vector<double> added = test::to_doubles(x);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += 0.5 * added[i];
    EXPECT_EQ(add_scaled(y, x, 0.5f).raw(), y.raw());
    EXPECT_LT(test::relative_error(y, expected), 1e-6);
  }
}

TEST(Elementwise, MoveAverageGoesPartOfTheWay) {
  const Tensor average = test::filled({3, 4}, 1.0f).transpose(0, 1),
               value = test::filled({3, 4}, 5.0f).transpose(0, 1);
  move_average(average, value, 0.25f);
  EXPECT_EQ(test::to_doubles(average), std::vector<double>(12, 2.0));
  EXPECT_THROW(move_average(average, test::filled({4, 3}, 5.0f), 0.25f), Error);
}

TEST(Elementwise, DropoutKeepsTheMeanAndTheSeedDecides) {
  const Tensor x = test::filled({500, 37}, 1.0f);
  const Tensor y = dropout(x, 0.25f, 7);
  int64_t dropped = 0;
  for (const float v : y.values<float>()) {
    ASSERT_TRUE(v == 0.0f || v == 1.0f / 0.75f) << v;
    dropped += v == 0.0f;
  }
  EXPECT_NEAR(static_cast<double>(dropped) / static_cast<double>(y.numel()), 0.25, 0.01);  // 3 sigma
  EXPECT_EQ(test::to_doubles(dropout(x, 0.25f, 7)), test::to_doubles(y));
  EXPECT_NE(test::to_doubles(dropout(x, 0.25f, 8)), test::to_doubles(y));
  EXPECT_EQ(test::to_doubles(dropout(x, 0.0f, 7)), test::to_doubles(x));
  EXPECT_THROW(dropout(x, 1.0f, 7), Error);
}

TEST(Elementwise, GradientsOfAddScaledAndDropout) {
  Rng rng(4);
  Tensor a = test::random_normal({6, 10}, rng), b = test::random_normal({6, 10}, rng);
  watch(a);
  watch(b);
  const Tensor dy = test::random_normal({6, 10}, rng);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    y = add_scaled(dropout(a, 0.5f, 3), dropout(b, 0.5f, 4), 2.0f);
  }
  tape.backward(y, dy);
  const std::vector<double> kept_a = test::to_doubles(dropout(dy, 0.5f, 3));
  std::vector<double> kept_b = test::to_doubles(dropout(dy, 0.5f, 4));
  for (double& v : kept_b) v *= 2;
  EXPECT_LT(test::relative_error(gradient_of(a), kept_a), 1e-6);
  EXPECT_LT(test::relative_error(gradient_of(b), kept_b), 1e-6);
}

TEST(Elementwise, TakeRowsAndItsGradient) {
  Rng rng(5);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t T = 1 + rng.below(60), M = 1 + rng.below(20);
    Tensor wide = test::random_normal({T, M + 2}, rng);
    std::vector<int32_t> places;
    for (int32_t t = 0; t < T; ++t) {
      if (rng.below(3) == 0) places.push_back(t);
    }
    const auto n = std::ssize(places);
    const Tensor at = Tensor::from_values<int32_t>(places, {n}), dy = test::random_normal({n, M}, rng);
    watch(wide);
    const Tensor x = wide.slice(1, 1, M + 1);
    Tape tape;
    Tensor y;
    {
      const RecordScope recording(&tape);
      y = take_rows(x, at);
    }
    tape.backward(y, dy);
    const std::vector<double> xs = test::to_doubles(x), dys = test::to_doubles(dy);
    std::vector<double> expected, gradient(xs.size(), 0.0);
    for (size_t i = 0; i < places.size() * static_cast<size_t>(M); ++i) {
      const auto width = static_cast<size_t>(M), from = static_cast<size_t>(places[i / width]) * width;
      expected.push_back(xs[from + i % width]);
      gradient[from + i % width] = dys[i];
    }
    EXPECT_EQ(test::to_doubles(y), expected);
    EXPECT_EQ(test::to_doubles(gradient_of(wide).slice(1, 1, M + 1)), gradient);
  }
  EXPECT_THROW(take_rows(Tensor::zeros({3, 2}), Tensor::from_values<int32_t>({{3}}, {1})), Error);
}

}  // namespace
}  // namespace ssm
