#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "ssm/ops/selective_scan/selective_scan_cases.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::same_bits;
using Vectors = std::map<std::string, std::vector<double>>;

// The forward's: f32 states and sums over time against f64. The largest seen here is 6e-6, of dA.
constexpr double kBound = 2e-5;

struct Case {
  SelectiveScanArgs args;
  std::vector<int64_t> lengths;
  Tensor initial, dy;
  SequenceBatch batch() const { return SequenceBatch::in_order(lengths); }
  int64_t E() const { return args.A.size(0); }
  int64_t N() const { return args.A.size(1); }
};

Case random_case(std::vector<int64_t> lengths, int64_t E, int64_t N, Rng& rng) {
  Case c;
  c.lengths = std::move(lengths);
  const int64_t T = std::accumulate(c.lengths.begin(), c.lengths.end(), int64_t{0});
  c.args = test::selective_scan_case(T, E, N, rng);
  const auto wide = [&](Tensor& x) {
    const Tensor copy = test::rows_somewhere(x.size(0), x.size(1), rng);
    for (int64_t t = 0; t < T; ++t)
      std::copy_n(x.data<float>() + t * x.stride(0), x.size(1), copy.data<float>() + t * copy.stride(0));
    x = copy;
  };
  if (rng.below(2)) {
    for (float& x : c.args.delta.values<float>()) x += 2.0f;  // steps around 0.3
  }
  if (rng.below(3) == 0) c.args.D = Tensor();
  if (rng.below(3) == 0) c.args.z = Tensor();
  if (rng.below(3) == 0) c.args.delta_bias = Tensor();
  if (rng.below(3) == 0) c.args.A = c.args.A.clone();
  if (rng.below(3) == 0) {
    c.args.delta_softplus = false;
    for (float& x : c.args.delta.values<float>()) x = std::abs(x) * 0.1f;
    if (c.args.delta_bias.defined()) {
      for (float& x : c.args.delta_bias.values<float>()) x = std::abs(x);
    }
  }
  for (Tensor* x : {&c.args.u, &c.args.delta, &c.args.B, &c.args.C, &c.args.z}) {
    if (x->defined()) wide(*x);
  }
  if (rng.below(3)) c.initial = test::random_normal({std::ssize(c.lengths), N, E}, rng);
  c.dy = test::random_normal({T, E}, rng);
  wide(c.dy);
  return c;
}

SelectiveScanGrads empty_grads(const Case& c, Rng& rng) {
  const int64_t T = c.args.u.size(0), E = c.E(), N = c.N();
  SelectiveScanGrads g;
  g.du = test::rows_somewhere(T, E, rng), g.ddelta = test::rows_somewhere(T, E, rng);
  g.dB = test::rows_somewhere(T, N, rng), g.dC = test::rows_somewhere(T, N, rng);
  g.dA = rng.below(2) ? Tensor::zeros({E, N}) : Tensor::zeros({N, E}).transpose(0, 1);
  if (c.args.D.defined()) g.dD = Tensor::zeros({E});
  if (c.args.z.defined()) g.dz = test::rows_somewhere(T, E, rng);
  if (c.args.delta_bias.defined()) g.ddelta_bias = Tensor::zeros({E});
  return g;
}

SelectiveScanGrads gradients(const Case& c, Rng& rng) {
  const SelectiveScanGrads g = empty_grads(c, rng);
  selective_scan_backward(c.args, c.batch(), c.initial, c.dy, g);
  return g;
}

std::map<std::string, Tensor> named(const SelectiveScanGrads& g) {
  std::map<std::string, Tensor> all{
      {"u", g.du}, {"delta", g.ddelta}, {"A", g.dA}, {"B", g.dB},
      {"C", g.dC}, {"D", g.dD},         {"z", g.dz}, {"delta_bias", g.ddelta_bias}};
  std::erase_if(all, [](const auto& x) { return !x.second.defined(); });
  return all;
}

std::vector<double> doubles(const Tensor& x) {
  return x.defined() ? test::to_doubles(x) : std::vector<double>();
}

// Sequence b of the case, in double.
reference::SelectiveScan<double> reference_case(const Case& c, int64_t b) {
  const SequenceBatch batch = c.batch();
  const auto part = [&](const Tensor& x) {
    return x.defined() ? doubles(x.slice(0, batch.offset(b), batch.offset(b + 1))) : std::vector<double>();
  };
  reference::SelectiveScan<double> s;
  s.E = static_cast<size_t>(c.E()), s.N = static_cast<size_t>(c.N());
  s.u = part(c.args.u), s.delta = part(c.args.delta), s.B = part(c.args.B), s.C = part(c.args.C);
  s.z = part(c.args.z), s.A = doubles(c.args.A), s.D = doubles(c.args.D);
  s.delta_bias = doubles(c.args.delta_bias), s.delta_softplus = c.args.delta_softplus;
  return s;
}

std::vector<double> initial_of(const Case& c, int64_t b) {
  return c.initial.defined() ? doubles(c.initial.select(0, b))
                             : std::vector<double>(static_cast<size_t>(c.E() * c.N()), 0.0);
}

std::vector<double> dy_of(const Case& c, int64_t b) {
  return doubles(c.dy.slice(0, c.batch().offset(b), c.batch().offset(b + 1)));
}

// Activations' gradients one sequence after another, parameters' summed over them.
void gather(Vectors& all, const std::string& name, const std::vector<double>& x, bool parameter) {
  std::vector<double>& to = all[name];
  if (!parameter) {
    to.insert(to.end(), x.begin(), x.end());
  } else {
    to.resize(x.size());
    for (size_t i = 0; i < x.size(); ++i) to[i] += x[i];
  }
}

Vectors analytic(const Case& c) {
  Vectors all;
  for (int64_t b = 0; b < std::ssize(c.lengths); ++b) {
    const auto g = reference::selective_scan_backward(reference_case(c, b), initial_of(c, b), dy_of(c, b));
    gather(all, "u", g.u, false), gather(all, "delta", g.delta, false), gather(all, "A", g.A, true);
    gather(all, "B", g.B, false), gather(all, "C", g.C, false), gather(all, "D", g.D, true);
    gather(all, "z", g.z, false), gather(all, "delta_bias", g.delta_bias, true);
  }
  return all;
}

Vectors by_differences(const Case& c) {
  Vectors all;
  for (int64_t b = 0; b < std::ssize(c.lengths); ++b) {
    auto s = reference_case(c, b);
    const std::vector<double> dy = dy_of(c, b), initial = initial_of(c, b);
    const auto loss = [&] {
      std::vector<double> h = initial;
      return test::dot(reference::selective_scan(s, h), dy);
    };
    const auto add = [&](const std::string& name, std::vector<double>& x, bool parameter) {
      gather(all, name, test::central_differences(x, loss), parameter);
    };
    add("u", s.u, false), add("delta", s.delta, false), add("A", s.A, true), add("B", s.B, false);
    add("C", s.C, false), add("D", s.D, true), add("z", s.z, false), add("delta_bias", s.delta_bias, true);
  }
  return all;
}

std::vector<int64_t> random_lengths(Rng& rng, int64_t sequences, int64_t longest) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < sequences; ++b) lengths.push_back(1 + rng.below(longest));
  return lengths;
}

TEST(SelectiveScanBackward, TheReferenceEqualsCentralDifferences) {
  Rng rng(1);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c =
        random_case(random_lengths(rng, 1 + rng.below(2), 7), 1 + rng.below(4), 1 + rng.below(4), rng);
    const Vectors expected = by_differences(c);
    for (const auto& [name, x] : analytic(c))
      EXPECT_LT(test::relative_difference(x, expected.at(name)), 1e-8) << name << " " << trial;
  }
}

TEST(SelectiveScanBackward, EqualsCentralDifferencesOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 40; ++trial) {
      const Case c =
          random_case(random_lengths(rng, 1 + rng.below(3), 9), 1 + rng.below(20), 1 + rng.below(6), rng);
      const Vectors expected = by_differences(c);
      for (const auto& [name, x] : named(gradients(c, rng)))
        EXPECT_LT(test::relative_error(x, expected.at(name)), kBound) << name << " " << trial;
    }
  });
}

TEST(SelectiveScanBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(3);
    for (int trial = 0; trial < 40; ++trial) {
      const int64_t N = rng.below(8) == 0 ? 128 : 1 + rng.below(40);
      const Case c = random_case(random_lengths(rng, 1 + rng.below(12), trial % 4 ? 40 : 150),
                                 1 + rng.below(150), N, rng);
      const Vectors expected = analytic(c);
      for (const auto& [name, x] : named(gradients(c, rng)))
        EXPECT_LT(test::relative_error(x, expected.at(name)), kBound) << name << " " << trial;
    }
  });
}

// Several segments, and more channels than tasks.
TEST(SelectiveScanBackward, LongAndWide) {
  Rng rng(4);
  for (const auto& [T, E, N] :
       {std::array<int64_t, 3>{5000, 20, 4}, {2048, 3, 2}, {2049, 3, 2}, {20, 2500, 3}}) {
    const Case c = random_case({T, 3}, E, N, rng);
    const Vectors expected = analytic(c);
    for (const auto& [name, x] : named(gradients(c, rng)))
      EXPECT_LT(test::relative_error(x, expected.at(name)), kBound) << name << " " << T << " " << E;
  }
}

TEST(SelectiveScanBackward, ThreadsDoNotChangeTheBits) {
  Rng rng(5);
  for (int trial = 0; trial < 12; ++trial) {
    const Case c =
        random_case(random_lengths(rng, 1 + rng.below(20), 40), 1 + rng.below(400), 1 + rng.below(20), rng);
    std::map<std::string, Tensor> first;
    for (const int threads : {1, 2, 3, 5}) {
      const test::ThreadScope scope(threads);
      const auto g = named(gradients(c, rng));
      if (first.empty()) first = g;
      for (const auto& [name, x] : g) EXPECT_TRUE(same_bits(x, first.at(name))) << name << " " << threads;
    }
  }
}

TEST(SelectiveScanBackward, ARaggedBatchEqualsSingleRunsBitForBit) {
  Rng rng(6);
  for (int trial = 0; trial < 20; ++trial) {
    const Case c =
        random_case(random_lengths(rng, 1 + rng.below(7), 40), 1 + rng.below(200), 1 + rng.below(20), rng);
    const auto together = named(gradients(c, rng));
    for (int64_t b = 0; b < std::ssize(c.lengths); ++b) {
      const int64_t begin = c.batch().offset(b), end = c.batch().offset(b + 1);
      Case one = c;
      one.lengths = {end - begin};
      for (Tensor* x : {&one.args.u, &one.args.delta, &one.args.B, &one.args.C, &one.args.z, &one.dy}) {
        if (x->defined()) *x = x->slice(0, begin, end);
      }
      if (c.initial.defined()) one.initial = c.initial.slice(0, b, b + 1);
      for (const auto& [name, x] : named(gradients(one, rng))) {
        if (x.size(0) != end - begin || name == "A" || name == "D" || name == "delta_bias") continue;
        EXPECT_TRUE(same_bits(x, together.at(name).slice(0, begin, end))) << name << " " << b;
      }
    }
  }
}

TEST(SelectiveScanBackward, AddsToParametersAndLeavesTheUnwanted) {
  Rng rng(7);
  Case c = random_case({20, 5}, 40, 5, rng);
  c.args = test::selective_scan_case(25, 40, 5, rng);
  const SelectiveScanGrads all = empty_grads(c, rng), again = empty_grads(c, rng);
  selective_scan_backward(c.args, c.batch(), c.initial, c.dy, all);
  for (const Tensor& x : {again.dA, again.dD, again.ddelta_bias}) {
    for (int64_t i = 0; i < x.numel(); ++i) x.data<float>()[i] = 1024.0f;
  }
  selective_scan_backward(c.args, c.batch(), c.initial, c.dy, again);
  for (const auto& [name, x] : named(all)) {
    std::vector<double> expected = test::to_doubles(x);
    const bool parameter = name == "A" || name == "D" || name == "delta_bias";
    for (double& e : expected) e += parameter ? 1024.0 : 0.0;
    EXPECT_LT(test::relative_error(named(again).at(name), expected), 1e-7) << name;
  }
  using Field = Tensor SelectiveScanGrads::*;
  for (const Field wanted : {&SelectiveScanGrads::du, &SelectiveScanGrads::ddelta, &SelectiveScanGrads::dA,
                             &SelectiveScanGrads::dB, &SelectiveScanGrads::dC, &SelectiveScanGrads::dD,
                             &SelectiveScanGrads::dz, &SelectiveScanGrads::ddelta_bias}) {
    SelectiveScanGrads one;
    one.*wanted = empty_grads(c, rng).*wanted;
    selective_scan_backward(c.args, c.batch(), c.initial, c.dy, one);
    EXPECT_TRUE(same_bits(one.*wanted, all.*wanted));
  }
}

TEST(SelectiveScanBackward, ExtremesStayFinite) {
  test::for_each_target([] {
    Rng rng(8);
    Case c = random_case({200}, 40, 16, rng);
    c.args = test::selective_scan_case(200, 40, 16, rng);
    for (int64_t i = 0; i < c.args.delta.numel(); ++i) {
      float& x = c.args.delta.data<float>()[i];
      const int64_t kind = rng.below(6);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
      if (kind == 4) c.args.z.data<float>()[i] = rng.below(2) ? 200.0f : -200.0f;
    }
    const Vectors expected = analytic(c);
    for (const auto& [name, x] : named(gradients(c, rng)))
      EXPECT_LT(test::relative_error(x, expected.at(name)), kBound) << name;
  });
}

TEST(SelectiveScanBackward, NamesTheOperandThatDoesNotFit) {
  Rng rng(9);
  Case c = random_case({4}, 6, 3, rng);
  c.args = test::selective_scan_case(4, 6, 3, rng);
  const SelectiveScanGrads good = empty_grads(c, rng);
  const auto message = [&](auto&& change) {
    Case changed = c;
    SelectiveScanGrads g = good;
    change(changed, g);
    try {
      selective_scan_backward(changed.args, changed.batch(), changed.initial, changed.dy, g);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const auto names = [](const std::string& text, const std::string& name) {
    return text.find("selective_scan: " + name + " ") == 0;
  };
  const Tensor bad = Tensor::zeros({4, 5});
  EXPECT_PRED2(names, message([&](Case& x, auto&) { x.dy = bad; }), "dy");
  EXPECT_PRED2(names, message([&](Case& x, auto&) { x.initial = bad; }), "initial");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.du = bad; }), "du");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.ddelta = bad; }), "ddelta");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dA = bad; }), "dA");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dB = bad; }), "dB");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dC = bad; }), "dC");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dD = bad; }), "dD");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.dz = bad; }), "dz");
  EXPECT_PRED2(names, message([&](Case&, auto& g) { g.ddelta_bias = bad; }), "ddelta_bias");
  EXPECT_PRED2(names, message([](Case& x, auto&) { x.args.z = Tensor(); }), "dz");
  EXPECT_PRED2(names, message([](Case& x, auto&) { x.args.D = Tensor(); }), "dD");
  EXPECT_PRED2(names, message([](Case& x, auto&) { x.args.delta_bias = Tensor(); }), "ddelta_bias");
}

}  // namespace
}  // namespace ssm
