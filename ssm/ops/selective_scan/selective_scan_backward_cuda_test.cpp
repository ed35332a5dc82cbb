// The backward of selective_scan on a card against the f64 reference, in every type of activations.
#include <map>

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/selective_scan/selective_scan_cases.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::on_card;
using test::rounded;
using Vectors = std::map<std::string, std::vector<double>>;

// Operands are taken as the values they are and everything inside is f32: gradients of 16-bit activations are
// off by their own rounding only. Parameters' gradients add up all tokens, and stay f32.
constexpr double kBound = 2e-5;
constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

struct Case {
  SelectiveScanArgs args;  // on the host, of values that `dtype` holds
  std::vector<int64_t> lengths;
  Tensor initial, dy;
  DType dtype = DType::f32;
  SequenceBatch batch() const { return SequenceBatch::in_order(lengths); }
  std::string name() const {
    return fmt::format("lengths {} E {} N {} {}", fmt::join(lengths, ","), args.A.size(0), args.A.size(1),
                       name_of(dtype));
  }
};

Case random_case(std::vector<int64_t> lengths, int64_t E, int64_t N, DType dtype, Rng& rng) {
  Case c;
  c.lengths = std::move(lengths), c.dtype = dtype;
  const int64_t T = c.batch().total();
  SelectiveScanArgs& args = c.args;
  args = test::selective_scan_case(T, E, N, rng);
  if (rng.below(3) == 0) args.D = Tensor();
  if (rng.below(3) == 0) args.z = Tensor();
  if (rng.below(3) == 0) args.A = args.A.clone();
  if (rng.below(3) == 0) args.delta_bias = Tensor();
  if (rng.below(3) == 0) {
    args.delta_softplus = false;
    for (float& x : args.delta.values<float>()) x = std::abs(x) * 0.1f;
    args.delta_bias = Tensor();
  }
  for (Tensor* x : {&args.u, &args.delta, &args.B, &args.C, &args.z}) *x = rounded(*x, dtype);
  if (rng.below(3)) c.initial = test::random_normal({std::ssize(c.lengths), N, E}, rng);
  c.dy = rounded(test::random_normal({T, E}, rng), dtype);
  return c;
}

// Rows on the card, columns of a wider tensor or alone, aligned or not.
Tensor upload(const Tensor& x, DType dtype, bool wide, Rng& rng) {
  if (!x.defined()) return x;
  const int64_t T = x.size(0), C = x.size(1);
  const int64_t left = wide ? 8 * rng.below(3) + (rng.below(4) ? 0 : 3) : 0,
                right = wide ? rng.below(2) * 8 : 0;
  const Tensor all = test::random_normal({T, left + C + right}, rng, 100.0f);
  for (int64_t t = 0; t < T; ++t)
    std::copy_n(x.data<float>() + t * x.stride(0), C, all.data<float>() + t * all.size(1) + left);
  return on_card(all, dtype).slice(1, left, left + C);
}

struct OnCard {
  SelectiveScanArgs args;
  Tensor initial, dy;
  SelectiveScanGrads grads;
};

OnCard upload(const Case& c, Rng& rng) {
  OnCard card{c.args, on_card(c.initial), {}, {}};
  const int64_t E = c.args.A.size(0), N = c.args.A.size(1);
  const bool wide = rng.below(2);
  for (Tensor* x : {&card.args.u, &card.args.delta, &card.args.B, &card.args.C, &card.args.z})
    *x = upload(*x, c.dtype, wide, rng);
  card.dy = upload(c.dy, c.dtype, wide, rng);
  for (Tensor* x : {&card.args.D, &card.args.delta_bias}) *x = on_card(*x);
  const bool channels_first = c.args.A.stride(0) == 1;
  card.args.A =
      channels_first ? on_card(c.args.A.transpose(0, 1).clone()).transpose(0, 1) : on_card(c.args.A.clone());
  const auto rows = [&](const Tensor& x) { return upload(x, c.dtype, wide, rng); };
  card.grads.du = rows(c.args.u), card.grads.ddelta = rows(c.args.u);
  card.grads.dB = rows(c.args.B), card.grads.dC = rows(c.args.B);
  if (c.args.z.defined()) card.grads.dz = rows(c.args.u);
  const auto zeros = [](const Shape& shape) { return Tensor::zeros(shape).to(kCuda); };
  card.grads.dA = rng.below(2) ? zeros({N, E}).transpose(0, 1) : zeros({E, N});
  if (c.args.D.defined()) card.grads.dD = zeros({E});
  if (c.args.delta_bias.defined()) card.grads.ddelta_bias = zeros({E});
  return card;
}

std::map<std::string, Tensor> named(const SelectiveScanGrads& g) {
  std::map<std::string, Tensor> all{
      {"u", g.du}, {"delta", g.ddelta}, {"A", g.dA}, {"B", g.dB},
      {"C", g.dC}, {"D", g.dD},         {"z", g.dz}, {"delta_bias", g.ddelta_bias}};
  std::erase_if(all, [](const auto& x) { return !x.second.defined(); });
  for (auto& x : all) x.second = test::from_card(x.second);
  return all;
}

std::vector<double> doubles(const Tensor& x) {
  return x.defined() ? test::to_doubles(x) : std::vector<double>();
}

Vectors analytic(const Case& c) {
  Vectors all;
  const SequenceBatch batch = c.batch();
  for (int64_t b = 0; b < batch.size(); ++b) {
    const auto part = [&](const Tensor& x) {
      return x.defined() ? doubles(x.slice(0, batch.offset(b), batch.offset(b + 1))) : std::vector<double>();
    };
    reference::SelectiveScan<double> s;
    s.E = static_cast<size_t>(c.args.A.size(0)), s.N = static_cast<size_t>(c.args.A.size(1));
    s.u = part(c.args.u), s.delta = part(c.args.delta), s.B = part(c.args.B), s.C = part(c.args.C);
    s.z = part(c.args.z), s.A = doubles(c.args.A), s.D = doubles(c.args.D);
    s.delta_bias = doubles(c.args.delta_bias), s.delta_softplus = c.args.delta_softplus;
    const std::vector<double> initial =
        c.initial.defined() ? doubles(c.initial.select(0, b)) : std::vector<double>(s.E * s.N, 0.0);
    const auto g = reference::selective_scan_backward(s, initial, part(c.dy));
    for (const auto& [name, x] :
         {std::pair("u", &g.u), {"delta", &g.delta}, {"B", &g.B}, {"C", &g.C}, {"z", &g.z}})
      all[name].insert(all[name].end(), x->begin(), x->end());
    for (const auto& [name, x] : {std::pair("A", &g.A), {"D", &g.D}, {"delta_bias", &g.delta_bias}}) {
      all[name].resize(x->size());
      for (size_t i = 0; i < x->size(); ++i) all[name][i] += (*x)[i];
    }
  }
  return all;
}

void expect_reference(const Case& c, Rng& rng, double bound = kBound) {
  const OnCard card = upload(c, rng);
  selective_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
  const Vectors expected = analytic(c);
  for (const auto& [name, x] : named(card.grads)) {
    const bool parameter = name == "A" || name == "D" || name == "delta_bias";
    EXPECT_LT(test::relative_error(x, expected.at(name)),
              bound + (parameter ? 0.0 : test::rounding_of(c.dtype)))
        << "d" << name << " " << c.name();
  }
}

int64_t random_N(Rng& rng) {
  constexpr int64_t kLarge[] = {17, 64, 128, 256};
  return rng.below(8) == 0 ? kLarge[rng.below(4)] : rng.below(2) ? 16 : 1 + rng.below(40);
}

TEST(SelectiveScanBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(61);
  for (int trial = 0; trial < 150; ++trial) {
    const int64_t E = rng.below(2) ? 8 * (1 + rng.below(30)) : 1 + rng.below(200), N = random_N(rng);
    std::vector<int64_t> lengths;
    for (int64_t b = 1 + rng.below(4); b > 0; --b) lengths.push_back(1 + rng.below(rng.below(3) ? 40 : 200));
    expect_reference(random_case(lengths, E, N, kTypes[rng.below(3)], rng), rng);
  }
}

TEST(SelectiveScanBackwardCuda, EveryLengthAroundAChunk) {
  SSM_NEED_CUDA();
  Rng rng(62);
  for (const int64_t near : {8, 16, 32, 64, 128, 256, 1024, 4096}) {
    for (const int64_t T : {near - 1, near, near + 1})
      expect_reference(random_case({T}, 1 + rng.below(70), rng.below(2) ? 16 : 1 + rng.below(40),
                                   kTypes[rng.below(3)], rng),
                       rng);
  }
}

TEST(SelectiveScanBackwardCuda, WideAndMany) {
  SSM_NEED_CUDA();
  Rng rng(63);
  expect_reference(random_case(std::vector<int64_t>(24, 40), 1536, 16, DType::bf16, rng), rng);
  expect_reference(random_case({300, 5, 200}, 2048, 16, DType::f32, rng), rng);
  expect_reference(random_case(std::vector<int64_t>(300, 3), 64, 16, DType::f16, rng), rng);
}

TEST(SelectiveScanBackwardCuda, LongSequences) {
  SSM_NEED_CUDA();
  Rng rng(64);
  expect_reference(random_case({65537}, 20, 16, DType::bf16, rng), rng, 1e-4);  // f32 sums over 65537 tokens
  Case slow = random_case({20000}, 8, 16, DType::f32, rng);
  slow.args = test::selective_scan_case(20000, 8, 16, rng);
  for (float& x : slow.args.delta.values<float>()) x -= 6.0f;
  expect_reference(slow, rng, 2e-4);
}

TEST(SelectiveScanBackwardCuda, ExtremesStayFinite) {
  SSM_NEED_CUDA();
  Rng rng(65);
  for (const int64_t T : {1, 400, 5000}) {
    Case c = random_case({T}, 40, 16, DType::f32, rng);
    c.args = test::selective_scan_case(T, 40, 16, rng);
    for (int64_t i = 0; i < c.args.delta.numel(); ++i) {
      float& x = c.args.delta.data<float>()[i];
      const int64_t kind = rng.below(6);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
      if (kind == 4) c.args.z.data<float>()[i] = rng.below(2) ? 200.0f : -200.0f;
    }
    expect_reference(c, rng);
  }
}

TEST(SelectiveScanBackwardCuda, AddsToParametersAndGivesTheSameBitsAgain) {
  SSM_NEED_CUDA();
  Rng rng(66);
  for (int trial = 0; trial < 10; ++trial) {
    const Case c = random_case({150, 40}, 100, trial % 2 ? 16 : 40, kTypes[rng.below(3)], rng);
    const OnCard card = upload(c, rng);
    selective_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
    const auto once = named(card.grads);
    selective_scan_backward(card.args, c.batch(), card.initial, card.dy, card.grads);
    for (const auto& [name, x] : named(card.grads)) {
      const bool parameter = name == "A" || name == "D" || name == "delta_bias";
      std::vector<double> expected = test::to_doubles(once.at(name));
      for (double& e : expected) e *= parameter ? 2 : 1;
      EXPECT_EQ(test::to_doubles(x), expected) << name << " " << c.name();
    }
    SelectiveScanGrads one;
    one.du = Tensor::empty(c.args.u.shape(), c.dtype, kCuda);
    selective_scan_backward(card.args, c.batch(), card.initial, card.dy, one);
    EXPECT_EQ(test::to_doubles(one.du.to(kCpu)), test::to_doubles(once.at("u")));
  }
}

}  // namespace
}  // namespace ssm
