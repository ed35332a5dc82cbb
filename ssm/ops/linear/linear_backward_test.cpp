// linear_backward against the f64 analytic backward, itself against central differences of the f64 forward.
//
// Bounds: the analytic f64 backward equals the differences to 1e-8 (linear is linear: only rounding is left).
// The f32 one is held to 3e-6, the bound of linear: sums of up to some hundred f32 products.
#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;
using test::random_rows;
using test::to_doubles;

Doubles plus(Doubles a, const Doubles& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

TEST(LinearBackward, TheReferenceEqualsTheDifferences) {
  Rng rng(1);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t T = 1 + rng.below(5), N = 1 + rng.below(6), K = 1 + rng.below(6);
    const Doubles x = to_doubles(test::random_normal({T, K}, rng)),
                  w = to_doubles(test::random_normal({N, K}, rng));
    const Doubles bias = to_doubles(test::random_normal({N}, rng)),
                  dy = to_doubles(test::random_normal({T, N}, rng));
    const auto grads = reference::linear_backward(x, w, dy, T, N, K);
    const auto y = [&](const Doubles& x_, const Doubles& w_, const Doubles& b_) {
      return reference::linear(x_, w_, b_, T, N, K);
    };
    test::expect_gradient(
        grads.dx, x, dy, [&](const Doubles& v) { return y(v, w, bias); }, 1e-8);
    test::expect_gradient(
        grads.dweight, w, dy, [&](const Doubles& v) { return y(x, v, bias); }, 1e-8);
    test::expect_gradient(
        grads.dbias, bias, dy, [&](const Doubles& v) { return y(x, w, v); }, 1e-8);
  }
}

struct Case {
  int64_t T, N, K;
  Tensor x, w, dy;
  Case(Rng& rng, DType dtype, int64_t most) {
    T = 1 + rng.below(most), N = 1 + rng.below(most), K = 1 + rng.below(most);
    x = random_rows(T, K, rng), dy = random_rows(T, N, rng);
    w = random_rows(N, K, rng).to(dtype);
  }
  std::string name() const { return fmt::format("T {} N {} K {} {}", T, N, K, name_of(w.dtype())); }
  reference::LinearGrads<double> expected() const {
    return reference::linear_backward(to_doubles(x), to_doubles(w), to_doubles(dy), T, N, K);
  }
};

TEST(LinearBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 150; ++trial) {
      const DType dtype = std::array{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(trial % 3)];
      const Case c(rng, dtype, trial % 10 == 0 ? 300 : 70);
      const auto expected = c.expected();
      const bool adds = rng.below(2);
      LinearGrads got{random_rows(c.T, c.K, rng), adds, random_rows(c.N, c.K, rng),
                      test::random_normal({c.N}, rng)};
      const Doubles dx = to_doubles(got.dx), dw = to_doubles(got.dweight), db = to_doubles(got.dbias);
      linear_backward(c.x, Weight{c.w}, c.dy, got);
      EXPECT_LT(test::relative_error(got.dx, adds ? plus(dx, expected.dx) : expected.dx), 3e-6) << c.name();
      EXPECT_LT(test::relative_error(got.dweight, plus(dw, expected.dweight)), 3e-6) << c.name();
      EXPECT_LT(test::relative_error(got.dbias, plus(db, expected.dbias)), 3e-6) << c.name();
    }
  });
}

// More terms than a block of the sum has, rows than a block of rows has; what is not wanted is not needed.
TEST(LinearBackward, LongSumsAndAbsentOperands) {
  Rng rng(3);
  for (const auto& [T, N, K] : {std::array<int64_t, 3>{1100, 5, 7}, {7, 1300, 37}, {530, 270, 20}}) {
    const Tensor x = random_rows(T, K, rng), w = random_rows(N, K, rng), dy = random_rows(T, N, rng);
    const auto expected = reference::linear_backward(to_doubles(x), to_doubles(w), to_doubles(dy), T, N, K);
    const Tensor dx = Tensor::empty({T, K}), dw = Tensor::zeros({N, K}), db = Tensor::zeros({N});
    linear_backward({}, Weight{w}, dy, {.dx = dx});
    linear_backward(x, Weight{}, dy, {.dweight = dw});
    linear_backward({}, Weight{}, dy, {.dbias = db});
    EXPECT_LT(test::relative_error(dx, expected.dx), 6e-6);
    EXPECT_LT(test::relative_error(dw, expected.dweight), 6e-6);
    EXPECT_LT(test::relative_error(db, expected.dbias), 6e-6);
  }
}

TEST(LinearBackward, TheSameBitsWhateverTheThreadsAndARowOfDxWhateverTheBatch) {
  test::for_each_target([] {
    Rng rng(4);
    for (int trial = 0; trial < 12; ++trial) {
      Case c(rng, trial % 2 ? DType::bf16 : DType::f32, 400);
      const auto run = [&](int threads) {
        const test::ThreadScope scope(threads);
        LinearGrads g{Tensor::empty({c.T, c.K}), false, Tensor::zeros({c.N, c.K}), Tensor::zeros({c.N})};
        linear_backward(c.x, Weight{c.w}, c.dy, g);
        return g;
      };
      const LinearGrads one = run(1);
      for (const int threads : {2, 3, 5}) {
        const LinearGrads many = run(threads);
        EXPECT_TRUE(test::same_bits(many.dx, one.dx) && test::same_bits(many.dweight, one.dweight) &&
                    test::same_bits(many.dbias, one.dbias))
            << c.name() << " on " << threads << " threads";
      }
      const int64_t begin = rng.below(c.T), end = begin + 1 + rng.below(c.T - begin);
      const Tensor part = Tensor::empty({end - begin, c.K});
      linear_backward({}, Weight{c.w}, c.dy.slice(0, begin, end), {.dx = part});
      EXPECT_TRUE(test::same_bits(part, one.dx.slice(0, begin, end))) << c.name();
    }
  });
}

TEST(LinearBackward, NothingToSum) {
  const Tensor dx = test::filled({3, 4}, 7), dw = test::filled({5, 4}, 7), db = test::filled({5}, 7);
  linear_backward({}, Weight{Tensor::zeros({0, 4})}, Tensor::zeros({3, 0}), {.dx = dx});
  linear_backward(Tensor::zeros({0, 4}), Weight{}, Tensor::zeros({0, 5}), {.dweight = dw, .dbias = db});
  EXPECT_EQ(to_doubles(dx), Doubles(12, 0.0));
  EXPECT_EQ(to_doubles(dw), Doubles(20, 7.0));
  EXPECT_EQ(to_doubles(db), Doubles(5, 7.0));
}

TEST(LinearBackward, NamesAnOperandThatDoesNotFit) {
  const Tensor dy = Tensor::zeros({2, 4}), x = Tensor::zeros({2, 3}), w = Tensor::zeros({4, 3});
  const auto text = [&](const Tensor& x_, const Tensor& w_, const LinearGrads& g) -> std::string {
    try {
      linear_backward(x_, Weight{w_}, dy, g);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(text(x, w, {.dx = Tensor::zeros({2, 4})}),
            "linear_backward: dx has shape [2, 4], expected [2, 3]");
  EXPECT_EQ(text({}, w, {.dweight = w}), "linear_backward: x has shape [], expected [2, K]");
  EXPECT_EQ(text(x, {}, {.dx = x}), "linear_backward: weight has shape [], expected [4, K]");
  EXPECT_EQ(text(x, w, {.dweight = w.to(DType::bf16)}), "linear_backward: dweight is bf16, expected f32");
  EXPECT_EQ(text(x, w, {.dbias = Tensor::zeros({3})}), "linear_backward: dbias has shape [3], expected [4]");
}

}  // namespace
}  // namespace ssm
