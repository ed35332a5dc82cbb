#include "ssm/ops/layer_norm/layer_norm.h"

#include <gtest/gtest.h>

#include "ssm/autograd/tape.h"
#include "ssm/ops/layer_norm/layer_norm_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

struct Case {
  int64_t T, M;
  Tensor x, residual, weight, bias, dy;
  float eps;
  explicit Case(Rng& rng) {
    T = 1 + rng.below(40), M = 8 + rng.below(rng.below(4) ? 80 : 900);
    x = test::random_rows(T, M, rng, 2.0f), residual = test::random_rows(T, M, rng, 2.0f);
    dy = test::random_rows(T, M, rng);
    weight = test::random_normal({M}, rng, 0.3f, 1.0f), bias = test::random_normal({M}, rng);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  std::vector<double> reference(const Tensor& of) const {
    return reference::layer_norm<double>(test::to_doubles(of), test::to_doubles(weight),
                                         test::to_doubles(bias), static_cast<double>(eps));
  }
};

TEST(LayerNorm, EqualsTheReference) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 200; ++trial) {
      const Case c(rng);
      EXPECT_LT(test::relative_error(layer_norm(c.x, c.weight, c.bias, c.eps), c.reference(c.x)), 5e-6)
          << c.M;
    }
  });
}

TEST(LayerNorm, AFarMeanCostsLittle) {
  Rng rng(2);
  const Case c(rng);
  const Tensor far = test::random_normal({c.T, c.M}, rng, 1.0f, 100.0f);
  EXPECT_LT(test::relative_error(layer_norm(far, c.weight, c.bias, c.eps), c.reference(far)), 5e-5);
}

TEST(LayerNorm, AddUpdatesTheResidual) {
  Rng rng(3);
  for (int trial = 0; trial < 50; ++trial) {
    const Case c(rng);
    const Tensor sum = c.residual.clone();
    for (int64_t t = 0; t < c.T; ++t) {
      for (int64_t i = 0; i < c.M; ++i)
        sum.data<float>()[t * c.M + i] += c.x.data<float>()[t * c.x.stride(0) + i];
    }
    Tensor updated = c.residual;
    const Tensor y = add_layer_norm(c.x, updated, c.weight, c.bias, c.eps);
    EXPECT_EQ(updated.raw(), c.residual.raw());
    EXPECT_TRUE(test::same_bits(updated, sum));
    EXPECT_TRUE(test::same_bits(y, layer_norm(sum, c.weight, c.bias, c.eps)));
  }
}

TEST(LayerNorm, TwoOfOneResidualAreTheBitsOfEach) {
  Rng rng(7);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c(rng);
    const Tensor x = rng.below(3) ? c.x : Tensor(), w2 = test::random_normal({c.M}, rng);
    Tensor residual = c.residual.clone(), expected = c.residual.clone();
    const Tensor y = x.defined() ? add_layer_norm(x, expected, c.weight, c.bias, c.eps)
                                 : layer_norm(expected, c.weight, c.bias, c.eps);
    const auto both = layer_norms(x, residual, {c.weight, c.bias, c.eps}, {w2, c.weight, 0.2f});
    EXPECT_TRUE(test::same_bits(residual, expected));
    EXPECT_TRUE(test::same_bits(both.first, y));
    EXPECT_TRUE(test::same_bits(both.second, layer_norm(expected, w2, c.weight, 0.2f)));
  }
}

TEST(LayerNorm, ARowIsTheSameAloneAndOnAnyThreads) {
  test::for_each_target([] {
    Rng rng(4);
    for (int trial = 0; trial < 20; ++trial) {
      const Case c(rng);
      const Tensor y = layer_norm(c.x, c.weight, c.bias, c.eps);
      for (const int threads : {1, 2, 5}) {
        const test::ThreadScope scope(threads);
        EXPECT_TRUE(test::same_bits(y.slice(0, c.T - 1, c.T),
                                    layer_norm(c.x.slice(0, c.T - 1, c.T), c.weight, c.bias, c.eps)));
        EXPECT_TRUE(test::same_bits(y, layer_norm(c.x, c.weight, c.bias, c.eps)));
      }
    }
  });
}

TEST(LayerNormBackward, TheReferenceIsTheDerivative) {
  Rng rng(5);
  const auto doubles = [&](int64_t n) { return test::to_doubles(test::random_normal({n}, rng)); };
  const std::vector<double> x = doubles(21), weight = doubles(7), bias = doubles(7), dy = doubles(21);
  const auto g = reference::layer_norm_backward(x, weight, 0.01, dy);
  const auto of = [](const std::vector<double>& a, const std::vector<double>& b,
                     const std::vector<double>& c) { return reference::layer_norm(a, b, c, 0.01); };
  test::expect_gradient(
      g.x, x, dy, [&](const auto& v) { return of(v, weight, bias); }, 1e-6);
  test::expect_gradient(
      g.weight, weight, dy, [&](const auto& v) { return of(x, v, bias); }, 1e-6);
  test::expect_gradient(
      g.bias, bias, dy, [&](const auto& v) { return of(x, weight, v); }, 1e-6);
}

// x and the residual both get the residual's gradient, from the norm and from what follows it.
TEST(LayerNormBackward, TheTapeEqualsTheReference) {
  test::for_each_target([] {
    Rng rng(6);
    for (int trial = 0; trial < 60; ++trial) {
      const Case c(rng);
      Tensor x = c.x.clone(), residual = c.residual.clone(), weight = c.weight.clone(), bias = c.bias.clone();
      for (Tensor* t : {&x, &residual, &weight, &bias}) watch(*t);
      const Tensor x_before = x, residual_before = residual;
      Tape tape;
      Tensor y;
      {
        const RecordScope recording(&tape);
        y = add_layer_norm(x, residual, weight, bias, c.eps);
      }
      const Tensor later = test::random_normal({c.T, c.M}, rng);  // the residual's from above
      gradient_hand_over(residual, later);
      tape.backward(y, c.dy.clone());
      const auto g =
          reference::layer_norm_backward<double>(test::to_doubles(residual), test::to_doubles(c.weight),
                                                 static_cast<double>(c.eps), test::to_doubles(c.dy));
      std::vector<double> whole = test::to_doubles(later);
      for (size_t i = 0; i < whole.size(); ++i) whole[i] += g.x[i];
      EXPECT_LT(test::relative_error(gradient_of(x_before), whole), 1e-5) << c.M;
      EXPECT_LT(test::relative_error(gradient_of(residual_before), whole), 1e-5) << c.M;
      EXPECT_LT(test::relative_error(gradient_of(weight), g.weight), 1e-5) << c.M;
      EXPECT_LT(test::relative_error(gradient_of(bias), g.bias), 1e-5) << c.M;
    }
  });
}

TEST(LayerNorm, NamesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 5}), w = Tensor::zeros({5});
  EXPECT_THROW(layer_norm({}, w, w, 1e-5f), Error);
  EXPECT_THROW(layer_norm(x, {}, w, 1e-5f), Error);
  EXPECT_THROW(layer_norm(x, w, Tensor::zeros({4}), 1e-5f), Error);
}

}  // namespace
}  // namespace ssm
