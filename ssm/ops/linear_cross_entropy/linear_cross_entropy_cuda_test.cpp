// linear_cross_entropy on a card against the f64 reference, in every activation type.
//
// Bounds. The loss: 2e-6 of itself and of the count, as on the CPU (logits are f32 in every type). Gradients:
// 1e-5 for f32. In 16 bits the rows of dlogits are rounded before the products, each element by u / 2 of
// itself; in the sums these errors are independent, so in the Euclidean norm u holds them, and u again for
// rounding dhidden.
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_reference.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;
using test::on_card;
using test::rounded;
using test::to_doubles;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

double euclidean_error(const Tensor& a, const Doubles& b) {
  const Doubles av = to_doubles(a.to(kCpu));
  double square = 0, scale = 1e-60;
  for (size_t i = 0; i < b.size(); ++i) square += (av[i] - b[i]) * (av[i] - b[i]), scale += b[i] * b[i];
  return std::sqrt(square / scale);
}

struct Case {
  int64_t T, M, V, vocab;
  DType dtype;
  float scale;
  Tensor hidden, weight, row_weights;  // on the host, as the card will see them
  std::vector<int32_t> targets;
  Case(Rng& rng, int64_t rows, int64_t width, int64_t words) {
    T = 1 + rng.below(rows), M = 1 + rng.below(width), V = 1 + rng.below(words), vocab = 1 + rng.below(V);
    if (rng.below(2)) M = (M + 7) / 8 * 8, V = (V + 7) / 8 * 8;
    dtype = kTypes[rng.below(3)], scale = rng.below(2) ? 1.0f : 0.1f;
    hidden = rounded(test::random_normal({T, M}, rng, 2.0f / std::sqrt(static_cast<float>(M))), dtype);
    weight = rounded(test::random_normal({V, M}, rng), dtype);
    if (rng.below(2)) row_weights = test::random_normal({T}, rng, 0.5f, 1.0f);
    const int64_t ignored = rng.below(3);
    for (int64_t t = 0; t < T; ++t) {
      const bool none = rng.below(4) < (ignored == 0 ? 0 : ignored == 1 ? 1 : 3);
      targets.push_back(none ? -1 : static_cast<int32_t>(rng.below(vocab)));
    }
  }
  auto expected() const {
    return reference::linear_cross_entropy<double>(
        to_doubles(hidden), to_doubles(weight), targets,
        row_weights.defined() ? to_doubles(row_weights) : Doubles(), scale, vocab, M);
  }
  std::string name() const {
    return fmt::format("T {} M {} V {} vocab {} {}", T, M, V, vocab, name_of(dtype));
  }
};

TEST(LinearCrossEntropyCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 100; ++trial) {
    const Case c(rng, trial % 10 ? 40 : 300, 70, trial % 5 ? 100 : 6000);
    auto expected = c.expected();
    const Tensor dhidden = on_card(test::random_normal({c.T, c.M}, rng), c.dtype);
    const Tensor dw0 = test::random_normal({c.V, c.M}, rng), dweight = on_card(dw0);
    const Tensor row_weights = on_card(c.row_weights),
                 targets = Tensor::from_values<int32_t>(c.targets, {c.T}).to(kCuda);
    const auto run = [&](const LinearCrossEntropyGrads& grads) {
      return linear_cross_entropy(on_card(c.hidden, c.dtype), Weight{on_card(c.weight, c.dtype)}, targets,
                                  row_weights, c.scale, c.vocab, grads);
    };
    const LinearCrossEntropy r = run({dhidden, dweight});
    const double loss = static_cast<double>(r.loss.to(kCpu).values<float>()[0]);
    EXPECT_EQ(r.count.to(kCpu).values<int64_t>()[0], expected.count);
    EXPECT_NEAR(loss, expected.loss,
                2e-6 * (std::abs(expected.loss) + c.scale * static_cast<double>(expected.count)))
        << c.name();
    EXPECT_EQ(static_cast<double>(run({}).loss.to(kCpu).values<float>()[0]), loss);
    Doubles dw = to_doubles(dweight.to(kCpu));
    const Doubles before = to_doubles(dw0);
    for (size_t i = 0; i < dw.size(); ++i) dw[i] -= before[i];
    Tensor change = Tensor::empty({c.V, c.M});
    for (size_t i = 0; i < dw.size(); ++i) change.data<float>()[i] = static_cast<float>(dw[i]);
    if (expected.count == 0) {
      EXPECT_EQ(to_doubles(dhidden.to(kCpu)), Doubles(static_cast<size_t>(c.T * c.M), 0.0));
      EXPECT_TRUE(test::same_bits(dweight.to(kCpu), dw0));
      continue;
    }
    if (c.vocab == 1) continue;  // the gradient is 0, but for rounding
    const double u = c.dtype == DType::f32 ? 0 : test::rounding_of(c.dtype);
    EXPECT_LT(euclidean_error(dhidden, expected.dhidden), 1e-5 + 2 * u) << c.name();
    EXPECT_LT(euclidean_error(change, expected.dweight), 2e-5 + u) << c.name();
  }
}

TEST(LinearCrossEntropyCuda, ManyBlocksGiveTheSameBitsAgain) {
  SSM_NEED_CUDA();
  Rng rng(2);
  const int64_t T = 3000, M = 64, V = 50280;  // two blocks of rows
  Tensor hidden = rounded(test::random_normal({T, M}, rng, 0.3f), DType::bf16);
  const Tensor weight = rounded(test::random_normal({V, M}, rng), DType::bf16);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < T; ++t)
    targets.push_back(rng.below(5) ? static_cast<int32_t>(rng.below(50277)) : -1);
  const Tensor ids = Tensor::from_values<int32_t>(targets, {T});
  Tensor first[3];
  for (int trial = 0; trial < 2; ++trial) {
    const LinearCrossEntropyGrads grads{Tensor::empty({T, M}, DType::bf16, kCuda),
                                        Tensor::zeros({V, M}, DType::f32, kCuda)};
    const auto r =
        linear_cross_entropy(hidden.to(DType::bf16).to(kCuda), Weight{weight.to(DType::bf16).to(kCuda)},
                             ids.to(kCuda), {}, 1e-3f, 50277, grads);
    const Tensor now[3] = {r.loss.to(kCpu), grads.dhidden.to(kCpu), grads.dweight.to(kCpu)};
    for (int i = 0; i < 3; ++i) {
      if (trial == 0) first[i] = now[i];
      EXPECT_TRUE(test::same_bits(now[i], first[i]));
    }
  }
  const LinearCrossEntropyGrads grads{Tensor::empty({T, M}), Tensor::zeros({V, M})};
  const auto cpu = linear_cross_entropy(hidden, Weight{weight}, ids, {}, 1e-3f, 50277, grads);
  EXPECT_NEAR(first[0].values<float>()[0], cpu.loss.values<double>()[0], 3e-6 * cpu.loss.values<double>()[0]);
  EXPECT_LT(euclidean_error(first[1], to_doubles(grads.dhidden)), 1e-5 + 0x1p-7);
  EXPECT_LT(euclidean_error(first[2], to_doubles(grads.dweight)), 1e-5 + 0x1p-8);
}

TEST(LinearCrossEntropyCuda, NanAndTargetsOutsideAreSeen) {
  SSM_NEED_CUDA();
  for (const DType dtype : kTypes) {
    const auto run = [&](float bad, int32_t target) {
      Tensor hidden = Tensor::zeros({3, 8}), weight = Tensor::zeros({40, 8});
      for (float& x : hidden.values<float>()) x = 1;
      hidden.data<float>()[16] = bad;
      const std::vector<int32_t> targets{2, -1, target};
      const Tensor dhidden = Tensor::zeros({3, 8}, dtype, kCuda);
      const auto r = linear_cross_entropy(on_card(hidden, dtype), Weight{on_card(weight, dtype)},
                                          Tensor::from_values<int32_t>(targets, {3}).to(kCuda), {}, 1, 39,
                                          {.dhidden = dhidden});
      const Tensor d = dhidden.to(kCpu).to(DType::f32);
      EXPECT_EQ(d.data<float>()[8], 0.0f);
      return std::pair(r.loss.to(kCpu).values<float>()[0], d.data<float>()[16]);
    };
    EXPECT_TRUE(std::isfinite(run(1, 3).first));
    EXPECT_TRUE(std::isnan(run(NAN, 3).first) && std::isnan(run(NAN, 3).second));
    for (const int32_t outside : {39, -2})
      EXPECT_TRUE(std::isnan(run(1, outside).first) && std::isnan(run(1, outside).second));
  }
}

}  // namespace
}  // namespace ssm
