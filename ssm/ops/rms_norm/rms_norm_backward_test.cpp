// The norms' backwards against the f64 analytic one, itself against central differences of the f64 forward.
//
// Bounds: the differences are good to 1e-7 or so. The f32 backwards are held to 1e-5 of relative_error: du is
// a difference of two terms, each good to some 1e-6; in rows of a few elements the difference is small beside
// them, so those are held to the terms themselves.
#include <gtest/gtest.h>

#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;
using test::random_rows;
using test::to_doubles;

constexpr double kBound = 1e-5;

struct Case {
  int64_t T, M, groups;
  Tensor x, z, dy, weight;
  float eps;
  Case(Rng& rng, int64_t least, int64_t most, int64_t rows) {
    groups = 1 + rng.below(4), T = 1 + rng.below(rows), M = groups * (least + rng.below(most - least));
    x = random_rows(T, M, rng, 2.0f), z = random_rows(T, M, rng, 2.0f), dy = random_rows(T, M, rng);
    if (rng.below(3)) weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  Doubles weights() const { return weight.defined() ? to_doubles(weight) : Doubles(); }
  auto expected(bool gated, int64_t parts) const {
    return reference::rms_norm_backward<double>(to_doubles(x), gated ? to_doubles(z) : Doubles(), weights(),
                                                to_doubles(dy), M, parts, eps);
  }
  std::string name() const { return fmt::format("T {} M {} groups {}", T, M, groups); }
};

TEST(RmsNormBackward, TheReferenceEqualsTheDifferences) {
  Rng rng(1);
  for (int trial = 0; trial < 40; ++trial) {
    const Case c(rng, 1, 6, 4);
    const Doubles x = to_doubles(c.x), z = to_doubles(c.z), dy = to_doubles(c.dy);
    const Doubles w = c.weight.defined() ? c.weights() : Doubles(static_cast<size_t>(c.M), 1.0);
    const double eps = 0.1;
    const auto plain = reference::rms_norm_backward<double>(x, {}, w, dy, c.M, 1, eps);
    const auto norm = [&](const Doubles& x_, const Doubles& w_) {
      return reference::rms_norm<double>(x_, w_, c.M, 1, eps);
    };
    test::expect_gradient(
        plain.dx, x, dy, [&](const Doubles& v) { return norm(v, w); }, 1e-7);
    test::expect_gradient(
        plain.dweight, w, dy, [&](const Doubles& v) { return norm(x, v); }, 1e-7);
    const auto gated = reference::rms_norm_backward<double>(x, z, w, dy, c.M, c.groups, eps);
    const auto gate = [&](const Doubles& x_, const Doubles& z_, const Doubles& w_) {
      return reference::gated_rms_norm<double>(x_, z_, w_, c.M, c.groups, eps);
    };
    test::expect_gradient(
        gated.dx, x, dy, [&](const Doubles& v) { return gate(v, z, w); }, 1e-7);
    test::expect_gradient(
        gated.dz, z, dy, [&](const Doubles& v) { return gate(x, v, w); }, 1e-7);
    test::expect_gradient(
        gated.dweight, w, dy, [&](const Doubles& v) { return gate(x, z, v); }, 1e-7);
  }
}

TEST(RmsNormBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 200; ++trial) {
      const Case c(rng, 8, trial % 4 ? 100 : 900, trial % 10 ? 20 : 150);
      const auto plain = c.expected(false, 1), gated = c.expected(true, c.groups);
      const Tensor dx = random_rows(c.T, c.M, rng), dz = random_rows(c.T, c.M, rng),
                   dw = Tensor::zeros({c.M});
      rms_norm_backward(c.x, c.weight, c.eps, c.dy, dx, dw);
      EXPECT_LT(test::relative_error(dx, plain.dx), kBound) << c.name();
      EXPECT_LT(test::relative_error(dw, plain.dweight), kBound) << c.name();

      const Tensor above = random_rows(c.T, c.M, rng), total = random_rows(c.T, c.M, rng);
      Doubles sum = to_doubles(above);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += plain.dx[i];
      const Tensor dw2 = test::filled({c.M}, 1);
      add_rms_norm_backward(c.x, c.weight, c.eps, c.dy, above, total, dw2);
      EXPECT_LT(test::relative_error(above, sum), kBound) << c.name();
      EXPECT_TRUE(test::same_bits(above, total)) << c.name();
      Doubles more = plain.dweight;
      for (double& v : more) v += 1;
      EXPECT_LT(test::relative_error(dw2, more), kBound) << c.name();

      const Tensor dw3 = Tensor::zeros({c.M});
      gated_rms_norm_backward(c.x, c.z, c.weight, c.groups, c.eps, c.dy, dx, dz, dw3);
      EXPECT_LT(test::relative_error(dx, gated.dx), kBound) << c.name();
      EXPECT_LT(test::relative_error(dz, gated.dz), kBound) << c.name();
      EXPECT_LT(test::relative_error(dw3, gated.dweight), kBound) << c.name();
    }
  });
}

// One to seven elements: errors against the size of the terms of du.
TEST(RmsNormBackward, ShortRowsCancelNoWorseThanTheirTerms) {
  test::for_each_target([] {
    Rng rng(3);
    for (int trial = 0; trial < 200; ++trial) {
      const Case c(rng, 1, 8, 10);
      const auto expected = c.expected(false, 1).dx;
      const Tensor dx = Tensor::empty({c.T, c.M});
      rms_norm_backward(c.x, c.weight, c.eps, c.dy, dx, {});
      const Doubles x = to_doubles(c.x), dy = to_doubles(c.dy), w = c.weights();
      for (int64_t t = 0; t < c.T; ++t) {
        double square = 0, largest = 0;
        for (int64_t m = 0; m < c.M; ++m) {
          const auto i = static_cast<size_t>(t * c.M + m);
          square += x[i] * x[i];
          largest = std::max(largest, std::abs(dy[i] * (w.empty() ? 1.0 : w[static_cast<size_t>(m)])));
        }
        const double term = largest / std::sqrt(square / static_cast<double>(c.M) + c.eps);
        for (int64_t m = 0; m < c.M; ++m) {
          const auto i = static_cast<size_t>(t * c.M + m);
          EXPECT_NEAR(dx.data<float>()[i], expected[i], 2e-6 * static_cast<double>(c.M) * term) << c.name();
        }
      }
    }
  });
}

TEST(RmsNormBackward, GatesAtTheEndsOfTheRange) {
  const std::vector<float> x(7, 2.0f), z{-200.0f, -88.0f, -87.0f, 0.0f, 20.0f, 88.0f, 120.0f};
  const Tensor xt = Tensor::from_values<float>(x, {7, 1}), zt = Tensor::from_values<float>(z, {7, 1});
  const Tensor dy = test::filled({7, 1}, 1), dx = Tensor::empty({7, 1}), dz = Tensor::empty({7, 1});
  // An eps as large as this leaves du = dy / sqrt(eps) beside a small second term.
  gated_rms_norm_backward(xt, zt, {}, 1, 1e4f, dy, dx, dz, {});
  const auto expected =
      reference::rms_norm_backward<double>(to_doubles(xt), to_doubles(zt), {}, to_doubles(dy), 1, 1, 1e4);
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_NEAR(dx.data<float>()[i], expected.dx[i], 1e-5 * std::abs(expected.dx[i]) + 1e-8) << z[i];
    EXPECT_NEAR(dz.data<float>()[i], expected.dz[i], 1e-5 * std::abs(expected.dz[i]) + 1e-8) << z[i];
  }
}

TEST(RmsNormBackward, TheSameBitsWhateverTheThreadsAndARowWhateverTheBatch) {
  test::for_each_target([] {
    Rng rng(4);
    const int64_t T = 150, M = 1027 * 3;
    const auto tensor = [&] { return test::random_normal({T, M}, rng); };
    const Tensor x = tensor(), z = tensor(), dy = tensor(), above = tensor(),
                 w = test::random_normal({M}, rng);
    struct Grads {
      Tensor dx, dr, dw, gx, gz, gw;
    };
    const auto run = [&](int64_t begin, int64_t end, int threads) {
      const test::ThreadScope scope(threads);
      const auto rows = [&](const Tensor& t) { return t.slice(0, begin, end); };
      const Shape shape{end - begin, M};
      Grads g{Tensor::empty(shape), rows(above).clone(),  Tensor::zeros({M}),
              Tensor::empty(shape), Tensor::empty(shape), Tensor::zeros({M})};
      rms_norm_backward(rows(x), w, 1e-5f, rows(dy), g.dx, {});
      add_rms_norm_backward(rows(x), w, 1e-5f, rows(dy), g.dr, {}, g.dw);
      gated_rms_norm_backward(rows(x), rows(z), w, 3, 1e-5f, rows(dy), g.gx, g.gz, g.gw);
      return g;
    };
    const Grads one = run(0, T, 1);
    for (const int threads : {2, 3, 5}) {
      const Grads many = run(0, T, threads);
      EXPECT_TRUE(test::same_bits(many.dr, one.dr) && test::same_bits(many.dw, one.dw) &&
                  test::same_bits(many.gz, one.gz) && test::same_bits(many.gw, one.gw));
    }
    for (const int64_t t : {0, 17, 149}) {
      const Grads row = run(t, t + 1, 2);
      const auto same = [&](const Tensor& a, const Tensor& b) {
        return test::same_bits(a, b.slice(0, t, t + 1));
      };
      EXPECT_TRUE(same(row.dx, one.dx) && same(row.dr, one.dr) && same(row.gx, one.gx) &&
                  same(row.gz, one.gz));
    }
  });
}

TEST(RmsNormBackward, NamesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({2, 6}), other = Tensor::zeros({2, 5});
  EXPECT_THROW(rms_norm_backward(x, {}, 1e-5f, other, x, {}), Error);
  EXPECT_THROW(rms_norm_backward(x, {}, 1e-5f, x, other, {}), Error);
  EXPECT_THROW(rms_norm_backward(x, {}, 1e-5f, x, {}, Tensor::zeros({5})), Error);
  EXPECT_THROW(gated_rms_norm_backward(x, x, {}, 4, 1e-5f, x, {}, {}, {}), Error);
  try {
    add_rms_norm_backward(x, {}, 1e-5f, x, {}, {}, {});
    FAIL() << "no dresidual";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "add_rms_norm_backward: dresidual is missing, expected [2, 6]");
  }
}

}  // namespace
}  // namespace ssm
