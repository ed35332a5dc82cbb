#include "ssm/autograd/tape.h"

#include <gtest/gtest.h>

#include <vector>

namespace ssm {
namespace {

Tensor of(std::vector<float> values, const Shape& shape) { return Tensor::from_values<float>(values, shape); }

std::vector<float> values_of(const Tensor& t) {
  const Tensor c = t.clone();
  return {c.values<float>().begin(), c.values<float>().end()};
}

float& at(const Tensor& t, int64_t i, int64_t j) {
  return t.data<float>()[i * t.stride(0) + j * t.stride(1)];
}

template <class F>
void for_each(const Tensor& t, F&& f) {
  for (int64_t i = 0; i < t.size(0); ++i) {
    for (int64_t j = 0; j < t.size(1); ++j) f(i, j);
  }
}

// Hands `value(i, j)` to the gradient of x, as an op's backward does.
template <class F>
void flow(const Tensor& x, F&& value) {
  const GradientTarget to = gradient_target(x);
  if (!to.tensor.defined()) return;
  for_each(to.tensor, [&](int64_t i, int64_t j) {
    float& g = at(to.tensor, i, j);
    g = (to.adds ? g : 0.0f) + value(i, j);
  });
}

// a * b, element by element.
Tensor product(const Tensor& a, const Tensor& b) {
  Tensor y = Tensor::empty(a.shape());
  for_each(y, [&](int64_t i, int64_t j) { at(y, i, j) = at(a, i, j) * at(b, i, j); });
  if (!records(a, b)) return y;
  return record(y, [a, b](const Tensor& dy) {
    flow(a, [&](int64_t i, int64_t j) { return at(dy, i, j) * at(b, i, j); });
    flow(b, [&](int64_t i, int64_t j) { return at(dy, i, j) * at(a, i, j); });
  });
}

// x times a parameter [1, 1] whose gradient is a sum.
Tensor scaled(const Tensor& x, const Tensor& factor) {
  Tensor y = Tensor::empty(x.shape());
  for_each(y, [&](int64_t i, int64_t j) { at(y, i, j) = at(x, i, j) * at(factor, 0, 0); });
  if (!records(x, factor)) return y;
  return record(y, [x, factor](const Tensor& dy) {
    flow(x, [&](int64_t i, int64_t j) { return at(dy, i, j) * at(factor, 0, 0); });
    const Tensor sum = gradient_sum(factor);
    if (sum.defined())
      for_each(x, [&](int64_t i, int64_t j) { at(sum, 0, 0) += at(dy, i, j) * at(x, i, j); });
  });
}

Tensor ones(const Shape& shape) {
  Tensor t = Tensor::empty(shape);
  for (float& x : t.values<float>()) x = 1.0f;
  return t;
}

TEST(Tape, RecordsNothingWithoutATapeOrAWatchedOperand) {
  Tensor a = of({1, 2}, {1, 2}), b = of({3, 4}, {1, 2});
  EXPECT_FALSE(wants_gradient(product(a, b)));
  Tape tape;
  const RecordScope recording(&tape);
  EXPECT_FALSE(wants_gradient(product(a, b)));
  EXPECT_TRUE(tape.empty());
  watch(a);
  {
    const RecordScope none(nullptr);
    EXPECT_FALSE(wants_gradient(product(a, b)));
  }
  EXPECT_TRUE(wants_gradient(product(a, b)));
}

TEST(Tape, ATensorUsedTwiceGetsTheSum) {
  Tensor a = of({1, 2, 3, 4}, {2, 2});
  watch(a);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    const Tensor square = product(a, a);
    y = product(square, a);  // a^3
  }
  tape.backward(y, ones({2, 2}));
  EXPECT_EQ(values_of(gradient_of(a)), (std::vector<float>{3, 12, 27, 48}));
  EXPECT_TRUE(tape.empty());
}

TEST(Tape, ViewsShareTheGradientOfTheirBase) {
  Tensor a = of({1, 2, 3, 4, 5, 6}, {2, 3});
  watch(a);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    y = product(a.slice(1, 0, 1), a.slice(1, 2, 3));  // column 1 is not used
  }
  tape.backward(y, ones({2, 1}));
  EXPECT_EQ(values_of(gradient_of(a)), (std::vector<float>{3, 0, 1, 6, 0, 4}));
}

TEST(Tape, OverlappingViewsAdd) {
  Tensor a = of({1, 2, 3, 4, 5, 6}, {2, 3});
  watch(a);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    y = product(a.slice(1, 0, 2), a.slice(1, 1, 3));
  }
  tape.backward(y, ones({2, 2}));
  EXPECT_EQ(values_of(gradient_of(a)), (std::vector<float>{2, 1 + 3, 2, 5, 4 + 6, 5}));
  EXPECT_THROW(gradient_target(a.slice(0, 0, 1)), Error);  // rows are not columns
}

TEST(Tape, AParameterAddsUpUntilItIsCleared) {
  Tensor factor = of({2}, {1, 1}), x = of({1, 2, 3}, {1, 3});
  watch(factor);
  Tape tape;
  for (int step = 1; step <= 3; ++step) {
    Tensor y;
    {
      const RecordScope recording(&tape);
      y = scaled(x, factor);
    }
    tape.backward(y, ones({1, 3}));
    EXPECT_EQ(values_of(gradient_of(factor)), std::vector<float>{6.0f * static_cast<float>(step)});
  }
  clear_gradient(factor);
  EXPECT_FALSE(gradient_of(factor).defined());
}

TEST(Tape, AGivenGradientIsCopiedBeforeItIsAddedTo) {
  Tensor a = of({1, 2}, {1, 2}), b = of({3, 4}, {1, 2}), factor = of({5}, {1, 1});
  watch(a);
  watch(b);
  Tape tape;
  Tensor y;
  {
    const RecordScope recording(&tape);
    const Tensor also = scaled(a, factor);  // its backward adds to a's gradient after the sum's gave it
    Tensor sum = Tensor::empty({1, 2});
    for_each(sum, [&](int64_t i, int64_t j) { at(sum, i, j) = at(a, i, j) + at(b, i, j); });
    sum = record(sum, [a, b](const Tensor& dy) {
      EXPECT_TRUE(gradient_hand_over(a, dy));
      EXPECT_TRUE(gradient_hand_over(b, dy));
      EXPECT_FALSE(gradient_hand_over(b, dy));
    });
    y = product(sum, ones({1, 2}));
    y = record(y, [parts = std::vector<Tensor>{y, also}](const Tensor& dy) {
      for (const Tensor& part : parts) EXPECT_TRUE(gradient_hand_over(part, dy));
    });
  }
  tape.backward(y, ones({1, 2}));
  EXPECT_EQ(values_of(gradient_of(a)), (std::vector<float>{6, 6}));
  EXPECT_EQ(values_of(gradient_of(b)), (std::vector<float>{1, 1}));
}

TEST(Tape, ACheckpointGivesTheSameGradients) {
  const Tensor start = of({1, -2, 3, 4, 5, -6}, {2, 3});
  std::vector<std::vector<float>> seen[2];
  for (const bool again : {false, true}) {
    Tensor a = start.clone(), factor = of({3}, {1, 1});
    watch(a);
    watch(factor);
    int runs = 0;
    auto block = [&runs, factor](std::span<const Tensor> in) {
      ++runs;
      const Tensor s = scaled(in[0], factor);
      return std::vector<Tensor>{product(s, in[0]), product(in[1], s)};
    };
    Tape tape;
    Tensor y;
    {
      const RecordScope recording(&tape);
      const Tensor b = scaled(a, factor), c = product(a, a);
      std::vector<Tensor> out = again ? checkpoint({b, c}, block) : block(std::vector<Tensor>{b, c});
      y = product(out[0], out[1]);
    }
    tape.backward(y, ones({2, 3}));
    EXPECT_EQ(runs, again ? 2 : 1);
    seen[again] = {values_of(y), values_of(gradient_of(a)), values_of(gradient_of(factor))};
  }
  EXPECT_EQ(seen[0], seen[1]);
}

TEST(Tape, MemoryOfWhatNoBackwardReadsIsFreed) {
  Tensor a = of({1, 2}, {1, 2});
  watch(a);
  Tape tape;
  const RecordScope recording(&tape);
  std::weak_ptr<int> alive;
  {
    auto owner = std::make_shared<int>(0);
    alive = owner;
    static const float kValues[2] = {1, 1};
    Tensor y = Tensor::from_memory(kValues, {1, 2}, DType::f32, owner);
    owner.reset();
    y = record(y, [](const Tensor&) {});
    EXPECT_FALSE(alive.expired());
  }
  EXPECT_TRUE(alive.expired());
}

}  // namespace
}  // namespace ssm
