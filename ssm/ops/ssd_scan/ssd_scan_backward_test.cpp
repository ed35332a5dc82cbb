#include <gtest/gtest.h>

#include <map>

#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_cases.h"

namespace ssm {
namespace {

using test::same_bits;
using Case = test::SsdGradientCase;
using Sizes = test::SsdSizes;
using Vectors = test::SsdVectors;
using test::analytic;
using test::named;
using test::random_lengths;
using test::random_sizes;

// f32 sums over chunks against f64. The largest error seen here is 3.3e-6, of dA, which adds up all tokens.
constexpr double kBound = 1e-5;

// The same values as rows of a wider tensor, or alone.
Tensor moved(const Tensor& x, Rng& rng) {
  const Tensor to = test::rows_somewhere(x.size(0), x.size(1), rng);
  for (int64_t t = 0; t < x.size(0); ++t)
    std::copy_n(x.data<float>() + t * x.stride(0), x.size(1), to.data<float>() + t * to.stride(0));
  return to;
}

Case random_case(std::vector<int64_t> lengths, const Sizes& size, Rng& rng) {
  Case c = test::random_gradient_case(std::move(lengths), size, rng,
                                      [&](const Tensor& x) { return moved(x, rng); });
  // Smaller than dy: where the two cancel in dA, its rounding does not.
  if (rng.below(2)) {
    c.dlast = test::random_normal({std::ssize(c.lengths), c.size.H, c.size.N, c.size.P}, rng, 0.1f);
  }
  return c;
}

SsdScanGrads empty_grads(const Case& c, Rng& rng) {
  const auto rows = [&](const Tensor& x) { return test::rows_somewhere(x.size(0), x.size(1), rng); };
  SsdScanGrads g{
      rows(c.args.x), rows(c.args.dt), Tensor::zeros({c.size.H}), rows(c.args.B), rows(c.args.C), {}, {}};
  if (c.dlast.defined() || c.initial.defined())
    g.dinitial = Tensor::empty({std::ssize(c.lengths), c.size.H, c.size.N, c.size.P});
  if (c.args.D.defined()) g.dD = Tensor::zeros(c.args.D.shape());
  if (c.args.dt_bias.defined()) g.ddt_bias = Tensor::zeros({c.size.H});
  return g;
}

SsdScanGrads gradients(const Case& c, Rng& rng) {
  const SsdScanGrads g = empty_grads(c, rng);
  ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, g, c.dlast);
  return g;
}

Vectors by_differences(const Case& c) {
  return test::each_sequence(c, [](auto& s, const auto& given, const auto& dy, const auto& dlast) {
    std::vector<double> initial = given;
    const auto slopes = [&](std::vector<double>& x) {
      return test::central_differences(x, [&] {
        std::vector<double> h = initial;
        const double of_y = test::dot(reference::ssd_scan(s, h), dy);
        return of_y + test::dot(h, dlast);
      });
    };
    return reference::SsdScanGradients<double>{slopes(s.x), slopes(s.dt),   slopes(s.A),       slopes(s.B),
                                               slopes(s.C), slopes(s.D),    slopes(s.dt_bias), {},
                                               {},          slopes(initial)};
  });
}

void expect_near(const SsdScanGrads& g, const Vectors& expected, const std::string& where) {
  for (const auto& [name, x] : named(g))
    EXPECT_LT(test::relative_error(x, expected.at(name)), kBound) << "d" << name << " " << where;
}

TEST(SsdScanBackward, TheReferenceEqualsCentralDifferences) {
  Rng rng(1);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c =
        random_case(random_lengths(rng, 1 + rng.below(2), 7),
                    {2 * (1 + rng.below(2)), 1 + rng.below(3), 1 + rng.below(2), 1 + rng.below(3)}, rng);
    const Vectors gradients = analytic(c);
    for (const auto& [name, slopes] : by_differences(c))
      EXPECT_LT(test::relative_difference(gradients.at(name), slopes), 1e-7) << name << " " << c.name();
  }
}

TEST(SsdScanBackward, EqualsCentralDifferencesOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 20; ++trial) {
      const int64_t G = 1 + rng.below(2);
      const Case c = random_case(random_lengths(rng, 1 + rng.below(2), 9),
                                 {G * (1 + rng.below(2)), 1 + rng.below(5), G, 1 + rng.below(6)}, rng);
      expect_near(gradients(c, rng), by_differences(c), c.name());
    }
  });
}

TEST(SsdScanBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(3);
    for (int trial = 0; trial < 40; ++trial) {
      const Case c =
          random_case(random_lengths(rng, 1 + rng.below(4), trial % 4 ? 90 : 200), random_sizes(rng), rng);
      expect_near(gradients(c, rng), analytic(c), c.name());
    }
  });
}

TEST(SsdScanBackward, ManyHeadsAndSeveralPieces) {
  Rng rng(4);
  for (const auto& [T, size] : {std::pair(int64_t{2100}, Sizes{2, 5, 1, 3}),
                                {1024, {3, 4, 1, 2}},
                                {1025, {2, 20, 2, 70}},
                                {70, {24, 8, 1, 8}},
                                {70, {22, 3, 11, 4}}}) {
    const Case c = random_case({7, T, 3}, size, rng);
    expect_near(gradients(c, rng), analytic(c), c.name());
  }
}

TEST(SsdScanBackward, ThreadsDoNotChangeTheBits) {
  Rng rng(5);
  for (int trial = 0; trial < 10; ++trial) {
    const Case c = random_case(
        trial == 0 ? std::vector<int64_t>{30, 1500, 9} : random_lengths(rng, 1 + rng.below(9), 150),
        random_sizes(rng), rng);
    std::map<std::string, Tensor> first;
    for (const int threads : {1, 2, 3, 12}) {
      const test::ThreadScope scope(threads);
      const auto g = named(gradients(c, rng));
      if (first.empty()) first = g;
      for (const auto& [name, x] : g) EXPECT_TRUE(same_bits(x, first.at(name))) << name << " " << c.name();
    }
  }
}

TEST(SsdScanBackward, ARaggedBatchEqualsSingleRunsBitForBit) {
  Rng rng(6);
  for (int trial = 0; trial < 15; ++trial) {
    const Case c = random_case(random_lengths(rng, 1 + rng.below(7), 140), random_sizes(rng), rng);
    const auto together = named(gradients(c, rng));
    for (int64_t b = 0; b < std::ssize(c.lengths); ++b) {
      const int64_t begin = c.batch().offset(b), end = c.batch().offset(b + 1);
      Case one = c;
      one.lengths = {end - begin};
      for (Tensor* x : {&one.args.x, &one.args.dt, &one.args.B, &one.args.C, &one.dy})
        *x = x->slice(0, begin, end);
      if (c.initial.defined()) one.initial = c.initial.slice(0, b, b + 1);
      if (c.dlast.defined()) one.dlast = c.dlast.slice(0, b, b + 1);
      const auto alone = named(gradients(one, rng));
      for (const char* name : {"x", "dt", "B", "C"})
        EXPECT_TRUE(same_bits(alone.at(name), together.at(name).slice(0, begin, end)))
            << name << " " << c.name();
    }
  }
}

TEST(SsdScanBackward, AddsToParametersAndLeavesTheUnwanted) {
  Rng rng(7);
  for (int trial = 0; trial < 6; ++trial) {
    const Case c = random_case({70, 5}, random_sizes(rng), rng);
    const SsdScanGrads all = gradients(c, rng), twice = gradients(c, rng);
    ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, twice, c.dlast);
    for (const auto& [name, x] : named(all)) {
      std::vector<double> expected = test::to_doubles(x);
      const bool parameter = name == "A" || name == "D" || name == "dt_bias";
      for (double& e : expected) e *= parameter ? 2 : 1;
      EXPECT_LT(test::relative_error(named(twice).at(name), expected), 1e-6) << name;
    }
    for (const auto field :
         {&SsdScanGrads::dx, &SsdScanGrads::ddt, &SsdScanGrads::dA, &SsdScanGrads::dB, &SsdScanGrads::dC,
          &SsdScanGrads::dD, &SsdScanGrads::ddt_bias, &SsdScanGrads::dinitial}) {
      SsdScanGrads one;
      one.*field = empty_grads(c, rng).*field;
      ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, one, c.dlast);
      if ((all.*field).defined()) {
        EXPECT_TRUE(same_bits(one.*field, all.*field));
      }
    }
  }
}

TEST(SsdScanBackward, ExtremesStayFinite) {
  test::for_each_target([] {
    Rng rng(8);
    const Sizes size{2, 8, 1, 12};
    Case c = random_case({200}, size, rng);
    c.args = test::ssd_scan_case(200, size.H, size.P, size.G, size.N, rng);
    for (int64_t i = 0; i < c.args.dt.numel(); ++i) {
      float& x = c.args.dt.data<float>()[i];
      const int64_t kind = rng.below(5);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
    }
    expect_near(gradients(c, rng), analytic(c), c.name());
  });
}

TEST(SsdScanBackward, NamesTheOperandThatDoesNotFit) {
  Rng rng(9);
  Case c = random_case({4}, {2, 3, 1, 4}, rng);
  c.args = test::ssd_scan_case(4, 2, 3, 1, 4, rng);
  const SsdScanGrads good = empty_grads(c, rng);
  const auto message = [&](auto&& change) {
    Case changed = c;
    SsdScanGrads g = good;
    change(changed, g);
    try {
      ssd_scan_backward(changed.args, changed.batch(), changed.initial, changed.dy, g);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const auto names = [](const std::string& text, const std::string& name) {
    return text.find("ssd_scan: " + name + " ") == 0;
  };
  const Tensor bad = Tensor::zeros({4, 5});
  EXPECT_PRED2(names, message([&](Case& x, auto&) { x.dy = bad; }), "dy");
  EXPECT_PRED2(names, message([&](Case& x, auto&) { x.initial = bad; }), "initial");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dx = bad; }), "dx");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.ddt = bad; }), "ddt");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dA = bad; }), "dA");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dB = bad; }), "dB");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dC = bad; }), "dC");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dD = bad; }), "dD");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.ddt_bias = bad; }), "ddt_bias");
  EXPECT_PRED2(names, message([](Case& x, auto&) { x.args.D = Tensor(); }), "dD");
  EXPECT_PRED2(names, message([](Case& x, auto&) { x.args.dt_bias = Tensor(); }), "ddt_bias");
}

}  // namespace
}  // namespace ssm
