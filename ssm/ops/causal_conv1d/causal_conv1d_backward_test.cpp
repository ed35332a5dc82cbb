#include <gtest/gtest.h>

#include <numeric>

#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::same_bits;
using Gradients = reference::CausalConv1dGradients<double>;

// Sums of K terms, and over up to 600 tokens of all sequences, in f32 against f64.
constexpr double kBound = 5e-6;

struct Case {
  std::vector<int64_t> lengths;
  int64_t C = 0, K = 0;
  Tensor x, weight, bias, initial, dy;
  Activation activation = Activation::silu;

  Case(Rng& rng, int64_t longest, int64_t channels) {
    C = 1 + rng.below(channels), K = 1 + rng.below(rng.below(4) ? 5 : 12);
    for (int64_t b = 1 + rng.below(4); b > 0; --b)
      lengths.push_back(1 + rng.below(rng.below(2) ? 4 : longest));
    const int64_t T = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    const auto rows = [&] {
      const Tensor t = test::rows_somewhere(T, C, rng);
      for (int64_t i = 0; i < T; ++i) {
        for (int64_t c = 0; c < C; ++c) t.data<float>()[i * t.stride(0) + c] = rng.normal();
      }
      return t;
    };
    x = rows(), dy = rows();
    weight =
        rng.below(2) ? test::random_normal({K, C}, rng).transpose(0, 1) : test::random_normal({C, K}, rng);
    if (rng.below(3)) bias = test::random_normal({C}, rng);
    if (rng.below(3)) initial = test::random_normal({std::ssize(lengths), K - 1, C}, rng);
    if (rng.below(3) == 0) activation = Activation::none;
  }

  SequenceBatch batch() const { return SequenceBatch::in_order(lengths); }
  Tensor rows(const Tensor& t, int64_t b) const {
    return t.slice(0, batch().offset(b), batch().offset(b + 1));
  }
  std::string name() const { return fmt::format("C {} K {} lengths {}", C, K, fmt::join(lengths, ",")); }

  CausalConv1dGrads gradients(Rng& rng) const {
    const CausalConv1dGrads g{test::rows_somewhere(x.size(0), C, rng),
                              rng.below(2) ? Tensor::zeros({C, K}) : Tensor::zeros({K, C}).transpose(0, 1),
                              bias.defined() ? Tensor::zeros({C}) : Tensor()};
    causal_conv1d_backward(x, weight, bias, activation, batch(), initial, dy, g);
    return g;
  }

  // f(x, weight, bias, window, dy) of every sequence: dx one after another, the rest summed.
  template <class F>
  Gradients each_sequence(F&& f) const {
    Gradients all;
    for (int64_t b = 0; b < std::ssize(lengths); ++b) {
      std::vector<double> window(static_cast<size_t>((K - 1) * C), 0.0);
      if (initial.defined()) window = test::to_doubles(initial.select(0, b));
      const Gradients g = f(test::to_doubles(rows(x, b)), test::to_doubles(weight),
                            bias.defined() ? test::to_doubles(bias) : std::vector<double>(), window,
                            test::to_doubles(rows(dy, b)));
      all.x.insert(all.x.end(), g.x.begin(), g.x.end());
      for (const auto& [to, from] : {std::pair(&all.weight, &g.weight), std::pair(&all.bias, &g.bias)}) {
        to->resize(from->size());
        for (size_t i = 0; i < from->size(); ++i) (*to)[i] += (*from)[i];
      }
    }
    return all;
  }

  Gradients analytic() const {
    return each_sequence(
        [&](const auto& inputs, const auto& w, const auto& b, const auto& window, const auto& gradient) {
          return reference::causal_conv1d_backward(inputs, w, b, activation, C, K, window, gradient);
        });
  }

  Gradients by_differences() const {
    return each_sequence([&](auto inputs, auto w, auto b, const auto& window, const auto& gradient) {
      const auto loss = [&] {
        std::vector<double> state = window;
        return test::dot(reference::causal_conv1d(inputs, w, b, activation, C, K, state), gradient);
      };
      return Gradients{test::central_differences(inputs, loss), test::central_differences(w, loss),
                       test::central_differences(b, loss)};
    });
  }
};

void expect_near(const CausalConv1dGrads& g, const Gradients& expected, const std::string& name) {
  EXPECT_LT(test::relative_error(g.dx, expected.x), kBound) << "dx " << name;
  EXPECT_LT(test::relative_error(g.dweight, expected.weight), kBound) << "dweight " << name;
  if (g.dbias.defined()) {
    EXPECT_LT(test::relative_error(g.dbias, expected.bias), kBound) << "dbias " << name;
  }
}

TEST(CausalConv1dBackward, EqualsCentralDifferencesOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 60; ++trial) {
      const Case c(rng, 12, 20);
      const Gradients expected = c.by_differences(), analytic = c.analytic();
      EXPECT_LT(test::relative_difference(analytic.x, expected.x), 1e-9) << c.name();
      EXPECT_LT(test::relative_difference(analytic.weight, expected.weight), 1e-9) << c.name();
      EXPECT_LT(test::relative_difference(analytic.bias, expected.bias), 1e-9) << c.name();
      expect_near(c.gradients(rng), expected, c.name());
    }
  });
}

TEST(CausalConv1dBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 60; ++trial) {
      const Case c(rng, 300, trial % 8 ? 60 : 900);
      expect_near(c.gradients(rng), c.analytic(), c.name());
    }
  });
}

TEST(CausalConv1dBackward, ThreadsDoNotChangeTheBits) {
  Rng rng(3);
  for (int trial = 0; trial < 12; ++trial) {
    const Case c(rng, trial ? 400 : 9000, trial ? 700 : 20);
    const CausalConv1dGrads first = c.gradients(rng);
    for (const int threads : {1, 2, 3, 5}) {
      const test::ThreadScope scope(threads);
      const CausalConv1dGrads again = c.gradients(rng);
      EXPECT_TRUE(same_bits(again.dx, first.dx) && same_bits(again.dweight, first.dweight)) << c.name();
      if (first.dbias.defined()) {
        EXPECT_TRUE(same_bits(again.dbias, first.dbias)) << c.name();
      }
    }
  }
}

TEST(CausalConv1dBackward, ABatchEqualsItsSequencesAlone) {
  Rng rng(4);
  for (int trial = 0; trial < 40; ++trial) {
    const Case c(rng, 300, 100);
    const CausalConv1dGrads together = c.gradients(rng);
    for (int64_t b = 0; b < std::ssize(c.lengths); ++b) {
      CausalConv1dGrads one;
      one.dx = Tensor::empty({c.batch().length(b), c.C});
      causal_conv1d_backward(
          c.rows(c.x, b), c.weight, c.bias, c.activation, SequenceBatch::single(c.batch().length(b)),
          c.initial.defined() ? c.initial.slice(0, b, b + 1) : Tensor(), c.rows(c.dy, b), one);
      EXPECT_TRUE(same_bits(one.dx, c.rows(together.dx, b))) << c.name();
    }
  }
}

TEST(CausalConv1dBackward, AddsToParametersAndLeavesTheUnwanted) {
  Rng rng(5);
  for (int trial = 0; trial < 10; ++trial) {
    const Case c(rng, 30, 60);
    const CausalConv1dGrads all = c.gradients(rng), twice = c.gradients(rng);
    causal_conv1d_backward(c.x, c.weight, c.bias, c.activation, c.batch(), c.initial, c.dy, twice);
    const auto doubled = [](const Tensor& x) {
      std::vector<double> v = test::to_doubles(x);
      for (double& e : v) e *= 2;
      return v;
    };
    EXPECT_TRUE(same_bits(twice.dx, all.dx));
    EXPECT_EQ(test::to_doubles(twice.dweight), doubled(all.dweight));
    CausalConv1dGrads weight;
    weight.dweight = Tensor::zeros({c.C, c.K});
    causal_conv1d_backward(c.x, c.weight, c.bias, c.activation, c.batch(), c.initial, c.dy, weight);
    EXPECT_TRUE(same_bits(weight.dweight, all.dweight));
    if (!c.bias.defined()) continue;
    EXPECT_EQ(test::to_doubles(twice.dbias), doubled(all.dbias));
  }
}

TEST(CausalConv1dBackward, ExtremesStayFinite) {
  Rng rng(6);
  Case c(rng, 30, 60);
  for (int64_t t = 0; t < c.x.size(0); ++t) {
    for (int64_t i = 0; i < c.C; ++i)
      c.x.data<float>()[t * c.x.stride(0) + i] *= rng.below(2) ? 1e3f : 1e-20f;
  }
  c.activation = Activation::silu;
  expect_near(c.gradients(rng), c.analytic(), c.name());
}

TEST(CausalConv1dBackward, NamesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({3, 5}), weight = Tensor::zeros({5, 4}), bias = Tensor::zeros({5});
  const auto message = [&](const Tensor& b, const Tensor& initial, const Tensor& dy,
                           const CausalConv1dGrads& g) {
    try {
      causal_conv1d_backward(x, weight, b, Activation::silu, SequenceBatch::single(3), initial, dy, g);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const auto names = [](const std::string& text, const std::string& name) {
    return text.find("causal_conv1d: " + name + " ") == 0;
  };
  const Tensor bad = Tensor::zeros({3, 4});
  EXPECT_EQ(message(bias, Tensor::zeros({1, 3, 5}), x, {x.clone(), weight.clone(), bias.clone()}),
            "no error");
  EXPECT_PRED2(names, message(bias, bad, x, {}), "initial");
  EXPECT_PRED2(names, message(bias, {}, bad, {}), "dy");
  EXPECT_PRED2(names, message(bias, {}, x, {bad, {}, {}}), "dx");
  EXPECT_PRED2(names, message(bias, {}, x, {{}, bad, {}}), "dweight");
  EXPECT_PRED2(names, message(bias, {}, x, {{}, {}, bad}), "dbias");
  EXPECT_PRED2(names, message({}, {}, x, {{}, {}, bias}), "dbias");
}

}  // namespace
}  // namespace ssm
