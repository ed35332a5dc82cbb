// adamw against its f64 reference and against torch.optim.AdamW.
//
// Bounds: m and v are two products and a sum, 1e-6 of relative_error over ten steps; p moves by lr a step,
// and is rounded where it is: 1e-6 of the largest it can have been in ten steps, |p| + 10 lr.
#include "ssm/ops/adamw/adamw.h"

#include <gtest/gtest.h>

#include "ssm/ops/adamw/adamw_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

using test::to_doubles;

void adamw(const AdamW& options, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v,
           const Tensor& grad_scale = {}, const Tensor& narrow = {}) {
  const AdamWParameter parameter{p, g, m, v, narrow};
  ssm::adamw(options, {&parameter, 1}, grad_scale);
}

TEST(AdamW, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 40; ++trial) {
      const int64_t rows = 1 + rng.below(9), columns = 1 + rng.below(trial % 8 ? 40 : 3000);
      const bool transposed = rng.below(2);  // as A lies
      const auto tensor = [&](float scale) {
        return transposed ? test::random_normal({columns, rows}, rng, scale).transpose(0, 1)
                          : test::random_normal({rows, columns}, rng, scale);
      };
      const AdamW base{.lr = 0.01f,
                       .beta1 = 0.9f,
                       .beta2 = rng.below(2) ? 0.95f : 0.999f,
                       .eps = rng.below(2) ? 1e-8f : 1e-3f,
                       .weight_decay = rng.below(2) ? 0.1f : 0.0f};
      const Tensor p = tensor(1), m = tensor(0), v = tensor(0);
      const Tensor scale = rng.below(2) ? test::filled({1}, 0.37f) : Tensor{};
      const DType type = rng.below(2) ? DType::bf16 : DType::f16;
      Tensor narrow = transposed ? Tensor::empty({columns, rows}, type).transpose(0, 1)
                                 : Tensor::empty({rows, columns}, type);
      if (rng.below(4) == 0) narrow = {};
      reference::AdamWState<double> s{to_doubles(p), to_doubles(m), to_doubles(v)};
      for (int64_t step = 1; step <= 10; ++step) {
        const Tensor g = tensor(0.1f);
        AdamW options = base;
        options.step = step;
        adamw(options, p, g, m, v, scale, narrow);
        reference::adamw<double>(s, to_doubles(g), base.lr, base.beta1, base.beta2, base.eps,
                                 base.weight_decay, step, scale.defined() ? 0.37f : 1.0);
      }
      EXPECT_LT(test::relative_error(m, s.m), 1e-6);
      EXPECT_LT(test::relative_error(v, s.v), 1e-6);
      const std::vector<double> got = to_doubles(p);
      for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], s.p[i], 1e-6 * (std::abs(s.p[i]) + 0.1));
      if (narrow.defined()) {
        EXPECT_EQ(to_doubles(narrow), to_doubles(p.to(type).to(DType::f32)));
      }
    }
  });
}

// torch 2.15.0, torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) on the CPU: p
// after each of ten steps with these gradients in turn.
TEST(AdamW, EqualsTorch) {
  constexpr int kSize = 5;
  const std::vector<float> start{0.5f, -1.25f, 3.0f, 0.0f, -0.001f};
  const float gradients[4][kSize] = {{0.1f, -0.2f, 0.3f, 1.0f, -1e-4f},
                                     {0.05f, 0.2f, -0.6f, 0.0f, 2e-4f},
                                     {-0.3f, 0.1f, 0.25f, -2.0f, 1e-3f},
                                     {1.5f, -0.02f, 0.0f, 0.5f, -5e-4f}};
  const float expected[10][kSize] = {
      {4.895000160e-01f, -1.238749981e+00f, 2.986999989e+00f, -9.999999776e-03f, 9.000000544e-03f},
      {4.796175957e-01f, -1.238037586e+00f, 2.987646818e+00f, -1.677647792e-02f, 5.357488524e-03f},
      {4.825434387e-01f, -1.239335418e+00f, 2.985079527e+00f, -1.341018826e-02f, -1.341403462e-03f},
      {4.771489203e-01f, -1.239799857e+00f, 2.982443333e+00f, -1.195313781e-02f, -3.795392113e-03f},
      {4.721277058e-01f, -1.236695409e+00f, 2.977589369e+00f, -1.300228387e-02f, -5.409713835e-03f},
      {4.675212502e-01f, -1.236596227e+00f, 2.976539135e+00f, -1.391594019e-02f, -7.700299844e-03f},
      {4.644453526e-01f, -1.237536788e+00f, 2.973953009e+00f, -1.139643602e-02f, -1.240565628e-02f},
      {4.590689242e-01f, -1.238003016e+00f, 2.971327782e+00f, -9.941399097e-03f, -1.484858058e-02f},
      {4.539750218e-01f, -1.236013412e+00f, 2.967238665e+00f, -1.014642045e-02f, -1.673555560e-02f},
      {4.492184520e-01f, -1.236066341e+00f, 2.965806484e+00f, -1.033075247e-02f, -1.902487315e-02f}};
  const Tensor p = Tensor::from_values<float>(start, {kSize}), m = Tensor::zeros({kSize}),
               v = Tensor::zeros({kSize});
  for (int64_t step = 1; step <= 10; ++step) {
    const Tensor g = Tensor::from_values<float>(gradients[(step - 1) % 4], {kSize});
    adamw({.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .step = step}, p,
          g, m, v);
    for (int i = 0; i < kSize; ++i) {
      const float want = expected[step - 1][i];
      EXPECT_NEAR(p.data<float>()[i], want, 5e-7f * (std::abs(want) + 0.01f))
          << "step " << step << " element " << i;
    }
  }
}

TEST(AdamW, AScaleThatIsNotFiniteChangesNothing) {
  for (const float scale : {NAN, INFINITY}) {
    const Tensor p = test::filled({20}, 1), g = test::filled({20}, NAN), m = test::filled({20}, 2),
                 v = test::filled({20}, 3);
    adamw({}, p, g, m, v, test::filled({1}, scale));
    EXPECT_EQ(to_doubles(p), std::vector<double>(20, 1.0));
    EXPECT_EQ(to_doubles(m), std::vector<double>(20, 2.0));
    EXPECT_EQ(to_doubles(v), std::vector<double>(20, 3.0));
  }
}

TEST(AdamW, TheSameBitsWhateverTheThreads) {
  Rng rng(2);
  const int64_t n = 100'003;
  const Tensor p0 = test::random_normal({n}, rng), g = test::random_normal({n}, rng);
  const auto run = [&](int threads) {
    const test::ThreadScope scope(threads);
    const Tensor p = p0.clone(), m = Tensor::zeros({n}), v = Tensor::zeros({n});
    adamw({}, p, g, m, v);
    return p;
  };
  for (const int threads : {2, 3, 5}) EXPECT_TRUE(test::same_bits(run(threads), run(1)));
}

TEST(AdamW, NamesWhatDoesNotFit) {
  const Tensor p = Tensor::zeros({2, 3}), other = Tensor::zeros({3, 2});
  EXPECT_THROW(adamw({}, p, other, p, p), Error);
  EXPECT_THROW(adamw({.step = 0}, p, p, p, p), Error);
  EXPECT_THROW(adamw({}, p, p, p, p, {}, p), Error);
  EXPECT_THROW(adamw({}, p, p, p, p, p), Error);
  EXPECT_THROW(adamw({}, Tensor::zeros({2, 6}).slice(1, 0, 3), p, p, p), Error);
  try {
    adamw({}, p, p, p, other.transpose(0, 1));
    FAIL() << "v lies otherwise";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "adamw: v [2, 3] does not lie as p does");
  }
}

}  // namespace
}  // namespace ssm
