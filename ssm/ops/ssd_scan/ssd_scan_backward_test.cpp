#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/ssd_scan/ssd_scan_cases.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::same_bits;
using Vectors = std::map<std::string, std::vector<double>>;

// f32 sums over chunks against f64. The largest error seen here is 3.3e-6, of dA, which adds up all tokens.
constexpr double kBound = 1e-5;

struct Sizes {
  int64_t H, P, G, N;
};

struct Case {
  SsdScanArgs args;
  std::vector<int64_t> lengths;
  Sizes size{};
  Tensor initial, dy;
  SequenceBatch batch() const {
    std::vector<int32_t> slots(lengths.size());
    std::iota(slots.begin(), slots.end(), 0);
    return SequenceBatch(lengths, slots);
  }
  std::string name() const {
    return fmt::format("H {} P {} G {} N {} lengths {}", size.H, size.P, size.G, size.N,
                       fmt::join(lengths, ","));
  }
};

Sizes random_sizes(Rng& rng) {
  constexpr int64_t kLarge[] = {64, 128, 256};
  const int64_t G = 1 + rng.below(3);
  return {G * (1 + rng.below(4)), rng.below(3) == 0 ? 16 << rng.below(3) : 1 + rng.below(70), G,
          rng.below(8) == 0 ? kLarge[rng.below(3)] : 1 + rng.below(40)};
}

std::vector<int64_t> random_lengths(Rng& rng, int64_t sequences, int64_t longest) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < sequences; ++b) lengths.push_back(1 + rng.below(rng.below(3) ? longest : 4));
  return lengths;
}

// The same values as rows of a wider tensor, or alone.
Tensor moved(const Tensor& x, Rng& rng) {
  const Tensor to = test::rows_somewhere(x.size(0), x.size(1), rng);
  for (int64_t t = 0; t < x.size(0); ++t)
    std::copy_n(x.data<float>() + t * x.stride(0), x.size(1), to.data<float>() + t * to.stride(0));
  return to;
}

// Moves steps away from the limits of dt', where there is no derivative.
void avoid_limits(SsdScanArgs& args) {
  const int64_t H = args.A.size(0);
  for (int64_t i = 0; i < args.dt.numel(); ++i) {
    float& dt = args.dt.data<float>()[i];
    for (const float limit : {args.dt_min, args.dt_max}) {
      const double raw = dt + (args.dt_bias.defined() ? args.dt_bias.data<float>()[i % H] : 0.0f);
      const double step = args.dt_softplus ? std::log1p(std::exp(raw)) : raw;
      if (limit > 0 && std::abs(step - limit) < 3e-3) dt += 0.3f;
    }
  }
}

Case random_case(std::vector<int64_t> lengths, const Sizes& size, Rng& rng) {
  Case c;
  c.lengths = std::move(lengths), c.size = size;
  const int64_t T = std::accumulate(c.lengths.begin(), c.lengths.end(), int64_t{0});
  SsdScanArgs& args = c.args;
  args = test::ssd_scan_case(T, size.H, size.P, size.G, size.N, rng);
  const int64_t d_kind = rng.below(3);
  if (d_kind == 0) args.D = Tensor();
  if (d_kind == 1) args.D = test::random_normal({size.H * size.P}, rng);
  if (rng.below(3) == 0) args.dt_bias = Tensor();
  if (rng.below(4) == 0) {
    args.dt_softplus = false;
    for (float& x : args.dt.values<float>()) x = 0.02f * std::abs(x);
    if (args.dt_bias.defined()) {
      for (float& x : args.dt_bias.values<float>()) x = std::abs(x);
    }
  }
  if (rng.below(3) == 0) args.dt_min = 0.02f, args.dt_max = 0.1f;
  avoid_limits(args);
  for (Tensor* x : {&args.x, &args.dt, &args.B, &args.C}) *x = moved(*x, rng);
  if (rng.below(3)) c.initial = test::random_normal({std::ssize(c.lengths), size.H, size.N, size.P}, rng);
  c.dy = moved(test::random_normal({T, size.H * size.P}, rng), rng);
  return c;
}

SsdScanGrads empty_grads(const Case& c, Rng& rng) {
  const auto rows = [&](const Tensor& x) { return test::rows_somewhere(x.size(0), x.size(1), rng); };
  SsdScanGrads g{
      rows(c.args.x), rows(c.args.dt), Tensor::zeros({c.size.H}), rows(c.args.B), rows(c.args.C), {}, {}};
  if (c.args.D.defined()) g.dD = Tensor::zeros(c.args.D.shape());
  if (c.args.dt_bias.defined()) g.ddt_bias = Tensor::zeros({c.size.H});
  return g;
}

SsdScanGrads gradients(const Case& c, Rng& rng) {
  const SsdScanGrads g = empty_grads(c, rng);
  ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, g);
  return g;
}

std::map<std::string, Tensor> named(const SsdScanGrads& g) {
  std::map<std::string, Tensor> all{
      {"x", g.dx}, {"dt", g.ddt},          {"A", g.dA}, {"B", g.dB}, {"C", g.dC},
      {"D", g.dD}, {"dt_bias", g.ddt_bias}};
  std::erase_if(all, [](const auto& x) { return !x.second.defined(); });
  return all;
}

// f(sequence in double, its initial state, its dy) of each sequence: activations' gradients one after
// another, parameters' summed.
template <class F>
Vectors each_sequence(const Case& c, F&& f) {
  Vectors all;
  const SequenceBatch batch = c.batch();
  for (int64_t b = 0; b < batch.size(); ++b) {
    const auto part = [&](const Tensor& x) {
      return test::to_doubles(x.slice(0, batch.offset(b), batch.offset(b + 1)));
    };
    const auto doubles = [](const Tensor& x) {
      return x.defined() ? test::to_doubles(x) : std::vector<double>();
    };
    reference::SsdScan<double> s;
    s.H = static_cast<size_t>(c.size.H), s.P = static_cast<size_t>(c.size.P);
    s.G = static_cast<size_t>(c.size.G), s.N = static_cast<size_t>(c.size.N);
    s.x = part(c.args.x), s.dt = part(c.args.dt), s.B = part(c.args.B), s.C = part(c.args.C);
    s.A = doubles(c.args.A), s.D = doubles(c.args.D), s.dt_bias = doubles(c.args.dt_bias);
    s.dt_softplus = c.args.dt_softplus, s.dt_min = c.args.dt_min, s.dt_max = c.args.dt_max;
    const std::vector<double> initial = c.initial.defined() ? test::to_doubles(c.initial.select(0, b))
                                                            : std::vector<double>(s.H * s.N * s.P, 0.0);
    const reference::SsdScanGradients<double> g = f(s, initial, part(c.dy));
    for (const auto& [name, x] : {std::pair("x", &g.x), {"dt", &g.dt}, {"B", &g.B}, {"C", &g.C}})
      all[name].insert(all[name].end(), x->begin(), x->end());
    for (const auto& [name, x] : {std::pair("A", &g.A), {"D", &g.D}, {"dt_bias", &g.dt_bias}}) {
      all[name].resize(x->size());
      for (size_t i = 0; i < x->size(); ++i) all[name][i] += (*x)[i];
    }
  }
  return all;
}

Vectors analytic(const Case& c) {
  return each_sequence(c, [](const auto& s, const auto& initial, const auto& dy) {
    return reference::ssd_scan_backward(s, initial, dy);
  });
}

Vectors by_differences(const Case& c) {
  return each_sequence(c, [](auto& s, const auto& initial, const auto& dy) {
    const auto slopes = [&](std::vector<double>& x) {
      return test::central_differences(x, [&] {
        std::vector<double> h = initial;
        return test::dot(reference::ssd_scan(s, h), dy);
      });
    };
    return reference::SsdScanGradients<double>{slopes(s.x),       slopes(s.dt), slopes(s.A),
                                               slopes(s.B),       slopes(s.C),  slopes(s.D),
                                               slopes(s.dt_bias), {},           {}};
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
    const Vectors expected = by_differences(c);
    for (const auto& [name, x] : analytic(c))
      EXPECT_LT(test::relative_difference(x, expected.at(name)), 1e-7) << name << " " << c.name();
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
    ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, twice);
    for (const auto& [name, x] : named(all)) {
      std::vector<double> expected = test::to_doubles(x);
      const bool parameter = name == "A" || name == "D" || name == "dt_bias";
      for (double& e : expected) e *= parameter ? 2 : 1;
      EXPECT_LT(test::relative_error(named(twice).at(name), expected), 1e-6) << name;
    }
    for (const auto field : {&SsdScanGrads::dx, &SsdScanGrads::ddt, &SsdScanGrads::dA, &SsdScanGrads::dB,
                             &SsdScanGrads::dC, &SsdScanGrads::dD, &SsdScanGrads::ddt_bias}) {
      SsdScanGrads one;
      one.*field = empty_grads(c, rng).*field;
      ssd_scan_backward(c.args, c.batch(), c.initial, c.dy, one);
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
