// The backward of ssd_scan on a card against the f64 reference, in every type of activations.
#include <map>

#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_cases.h"

namespace ssm {
namespace {

using test::on_card;
using test::rounded;
using Case = test::SsdGradientCase;
using Sizes = test::SsdSizes;
using Vectors = test::SsdVectors;
using test::analytic;
using test::random_lengths;
using test::random_sizes;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

// f32 products are made of three in TF32 and lose the product of the low halves, 2^-22 of each term.
constexpr double kBound = 5e-5;

Case random_case(std::vector<int64_t> lengths, const Sizes& size, DType dtype, Rng& rng) {
  Case c = test::random_gradient_case(std::move(lengths), size, rng,
                                      [&](const Tensor& x) { return rounded(x, dtype); });
  c.dtype = dtype;
  return c;
}

// Columns of a wider tensor on the card, or a tensor of their own.
Tensor upload(const Tensor& x, DType dtype, int64_t left) {
  const int64_t T = x.size(0), C = x.size(1);
  const Tensor all = Tensor::zeros({T, left + C});
  for (int64_t t = 0; t < T; ++t)
    std::copy_n(x.data<float>() + t * C, C, all.data<float>() + t * all.size(1) + left);
  return on_card(all, dtype).slice(1, left, left + C);
}

struct OnCard {
  SsdScanArgs args;
  Tensor initial, dy;
  SsdScanGrads grads;
};

OnCard upload(const Case& c, Rng& rng) {
  OnCard card{c.args, on_card(c.initial), {}, {}};
  const auto rows = [&, left = rng.below(2)   ? 0
                               : rng.below(2) ? 8
                                              : 3](const Tensor& x) { return upload(x, c.dtype, left); };
  for (Tensor* x : {&card.args.x, &card.args.dt, &card.args.B, &card.args.C}) *x = rows(*x);
  for (Tensor* x : {&card.args.A, &card.args.D, &card.args.dt_bias}) *x = on_card(*x);
  card.dy = rows(c.dy);
  card.grads.dx = rows(c.args.x), card.grads.ddt = rows(c.args.dt);
  card.grads.dB = rows(c.args.B), card.grads.dC = rows(c.args.C);
  const auto zeros = [](const Shape& shape) { return Tensor::zeros(shape).to(kCuda); };
  card.grads.dA = zeros({c.size.H});
  if (c.args.D.defined()) card.grads.dD = zeros(c.args.D.shape());
  if (c.args.dt_bias.defined()) card.grads.ddt_bias = zeros({c.size.H});
  return card;
}

std::map<std::string, Tensor> named(const SsdScanGrads& g) {
  std::map<std::string, Tensor> all = test::named(g);
  for (auto& x : all) x.second = test::from_card(x.second);
  return all;
}

// The Euclidean error of a over the size of b; over the terms' size where b's elements are sums over tokens,
// whose signs may cancel while their rounding does not.
double euclidean_error(const Tensor& a, const std::vector<double>& b, const std::vector<double>& terms) {
  const std::vector<double> values = test::to_doubles(a);
  double error = 0, square = test::dot(b, b);
  for (size_t i = 0; i < b.size(); ++i) error += (values[i] - b[i]) * (values[i] - b[i]);
  for (const double x : terms) square += x;
  return std::sqrt(error / (square + 1e-60));
}

// f32: every element. 16 bits: states and the factors of products are rounded to the type or to TF32, so the
// bound is for the whole gradient, in units u of the type; single elements only where they are no sums over
// tokens.
void expect_reference(const Case& c, Rng& rng, double bound = kBound) {
  const OnCard card = upload(c, rng);
  ssd_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
  const Vectors expected = analytic(c);
  for (const auto& [name, x] : named(card.grads)) {
    const double u = test::rounding_of(c.dtype);
    const auto terms = expected.find(name + " terms");
    const bool sum = terms != expected.end();
    if (c.dtype == DType::f32) {
      EXPECT_LT(test::relative_error(x, expected.at(name)), bound) << "d" << name << " " << c.name();
      continue;
    }
    EXPECT_LT(euclidean_error(x, expected.at(name), sum ? terms->second : std::vector<double>()), 2 * u)
        << "d" << name << " " << c.name();
    if (!sum) {
      EXPECT_LT(test::relative_error(x, expected.at(name)), 16 * u) << "d" << name << " " << c.name();
    }
  }
}

TEST(SsdScanBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(81);
  for (int trial = 0; trial < 120; ++trial) {
    Sizes size = random_sizes(rng);
    if (rng.below(2)) size.P = 8 * (1 + rng.below(10)), size.N = 8 * (1 + rng.below(12));
    expect_reference(random_case(random_lengths(rng, 1 + rng.below(4), trial % 4 ? 90 : 200), size,
                                 kTypes[rng.below(3)], rng),
                     rng);
  }
}

TEST(SsdScanBackwardCuda, LengthsAroundAChunkAndLargeSizes) {
  SSM_NEED_CUDA();
  Rng rng(82);
  for (const int64_t near : {64, 128, 1024}) {
    for (const int64_t T : {near - 1, near, near + 1})
      expect_reference(random_case({T, 5}, {2, 16, 1, 16}, kTypes[rng.below(3)], rng), rng);
  }
  for (const DType dtype : kTypes) {
    expect_reference(random_case({200, 70}, {24, 64, 1, 128}, dtype, rng), rng);
    expect_reference(random_case({150}, {4, 130, 2, 200}, dtype, rng), rng);
    expect_reference(random_case(std::vector<int64_t>(100, 2), {8, 64, 8, 64}, dtype, rng), rng);
  }
}

// Heads and states of the sizes that 16-bit activations have kernels of their own for: few chunks, whose
// heads are shared out among blocks, and many.
TEST(SsdScanBackwardCuda, WholeTilesEqualTheReference) {
  SSM_NEED_CUDA();
  Rng rng(85);
  for (int trial = 0; trial < 24; ++trial) {
    const int64_t G = 1 + rng.below(2);
    const Sizes size{G * (1 + rng.below(4)), 64, G, rng.below(2) ? 64 : 128};
    expect_reference(random_case(random_lengths(rng, 1 + rng.below(4), trial % 4 ? 150 : 300), size,
                                 kTypes[1 + rng.below(2)], rng),
                     rng);
  }
  for (const DType dtype : {DType::bf16, DType::f16})
    expect_reference(random_case(random_lengths(rng, 140, 3), {6, 64, 2, 128}, dtype, rng), rng);
}

TEST(SsdScanBackwardCuda, ExtremesStayFinite) {
  SSM_NEED_CUDA();
  Rng rng(83);
  const Sizes size{2, 8, 1, 12};
  Case c = random_case({200}, size, DType::f32, rng);
  c.args = test::ssd_scan_case(200, size.H, size.P, size.G, size.N, rng);
  for (int64_t i = 0; i < c.args.dt.numel(); ++i) {
    float& x = c.args.dt.data<float>()[i];
    const int64_t kind = rng.below(5);
    x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
  }
  expect_reference(c, rng);
}

TEST(SsdScanBackwardCuda, AddsToParametersAndGivesTheSameBitsAgain) {
  SSM_NEED_CUDA();
  Rng rng(84);
  for (int trial = 0; trial < 10; ++trial) {
    const Sizes size = trial < 8 ? random_sizes(rng) : Sizes{6, 64, 1, 64 * (trial - 7)};
    const Case c = random_case({150, 40}, size, kTypes[trial < 8 ? rng.below(3) : 1], rng);
    const OnCard card = upload(c, rng);
    ssd_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
    const auto once = named(card.grads);
    ssd_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
    for (const auto& [name, x] : named(card.grads)) {
      std::vector<double> expected = test::to_doubles(once.at(name));
      const bool parameter = name == "A" || name == "D" || name == "dt_bias";
      for (double& e : expected) e *= parameter ? 2 : 1;
      EXPECT_EQ(test::to_doubles(x), expected) << name << " " << c.name();
    }
  }
}

}  // namespace
}  // namespace ssm
