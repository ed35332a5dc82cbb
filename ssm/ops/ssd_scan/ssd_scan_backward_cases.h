// Operands of ssd_scan's backward, and what the f64 reference makes of them: for tests on a CPU and on a
// card.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "ssm/ops/ssd_scan/ssd_scan_cases.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"
#include "ssm/ops/test_gradient.h"

namespace ssm::test {

using SsdVectors = std::map<std::string, std::vector<double>>;

struct SsdSizes {
  int64_t H, P, G, N;
};

struct SsdGradientCase {
  SsdScanArgs args;
  std::vector<int64_t> lengths;
  SsdSizes size{};
  Tensor initial, dy;
  Tensor dlast;  // of the states after the sequences; undefined: zeros
  DType dtype = DType::f32;

  SequenceBatch batch() const { return SequenceBatch::in_order(lengths); }
  std::string name() const {
    return fmt::format("{} H {} P {} G {} N {} lengths {}", name_of(dtype), size.H, size.P, size.G, size.N,
                       fmt::join(lengths, ","));
  }
};

inline std::map<std::string, Tensor> named(const SsdScanGrads& g) {
  std::map<std::string, Tensor> all{{"x", g.dx},
                                    {"dt", g.ddt},
                                    {"A", g.dA},
                                    {"B", g.dB},
                                    {"C", g.dC},
                                    {"D", g.dD},
                                    {"dt_bias", g.ddt_bias},
                                    {"initial", g.dinitial}};
  std::erase_if(all, [](const auto& x) { return !x.second.defined(); });
  return all;
}

inline SsdSizes random_sizes(Rng& rng) {
  constexpr int64_t kLarge[] = {64, 128, 256};
  const int64_t G = 1 + rng.below(3);
  return {G * (1 + rng.below(4)), rng.below(3) == 0 ? 16 << rng.below(3) : 1 + rng.below(70), G,
          rng.below(8) == 0 ? kLarge[rng.below(3)] : 1 + rng.below(40)};
}

inline std::vector<int64_t> random_lengths(Rng& rng, int64_t sequences, int64_t longest) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < sequences; ++b) lengths.push_back(1 + rng.below(rng.below(3) ? longest : 4));
  return lengths;
}

// Moves steps away from the limits of dt', where there is no derivative.
inline void avoid_limits(SsdScanArgs& args) {
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

// `place` is done to every activation, dy included.
inline SsdGradientCase random_gradient_case(std::vector<int64_t> lengths, const SsdSizes& size, Rng& rng,
                                            const std::function<Tensor(const Tensor&)>& place) {
  SsdGradientCase c;
  c.lengths = std::move(lengths), c.size = size;
  const int64_t T = c.batch().total();
  SsdScanArgs& args = c.args;
  args = ssd_scan_case(T, size.H, size.P, size.G, size.N, rng);
  const int64_t d_kind = rng.below(3);
  if (d_kind == 0) args.D = Tensor();
  if (d_kind == 1) args.D = random_normal({size.H * size.P}, rng);
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
  for (Tensor* x : {&args.x, &args.dt, &args.B, &args.C}) *x = place(*x);
  if (rng.below(3)) c.initial = random_normal({std::ssize(c.lengths), size.H, size.N, size.P}, rng);
  c.dy = place(random_normal({T, size.H * size.P}, rng));
  return c;
}

// f(sequence in double, its initial state, its dy, its dlast) of each sequence: activations' gradients one
// after another, parameters' summed.
template <class F>
SsdVectors each_sequence(const SsdGradientCase& c, F&& f) {
  SsdVectors all;
  const SequenceBatch batch = c.batch();
  for (int64_t b = 0; b < batch.size(); ++b) {
    const auto part = [&](const Tensor& x) {
      return to_doubles(x.slice(0, batch.offset(b), batch.offset(b + 1)));
    };
    const auto doubles = [](const Tensor& x) { return x.defined() ? to_doubles(x) : std::vector<double>(); };
    reference::SsdScan<double> s;
    s.H = static_cast<size_t>(c.size.H), s.P = static_cast<size_t>(c.size.P);
    s.G = static_cast<size_t>(c.size.G), s.N = static_cast<size_t>(c.size.N);
    s.x = part(c.args.x), s.dt = part(c.args.dt), s.B = part(c.args.B), s.C = part(c.args.C);
    s.A = doubles(c.args.A), s.D = doubles(c.args.D), s.dt_bias = doubles(c.args.dt_bias);
    s.dt_softplus = c.args.dt_softplus, s.dt_min = c.args.dt_min, s.dt_max = c.args.dt_max;
    const auto state = [&](const Tensor& x) {
      return x.defined() ? to_doubles(x.select(0, b)) : std::vector<double>(s.H * s.N * s.P, 0.0);
    };
    const reference::SsdScanGradients<double> g = f(s, state(c.initial), part(c.dy), state(c.dlast));
    for (const auto& [name, x] :
         {std::pair("x", &g.x), {"dt", &g.dt}, {"B", &g.B}, {"C", &g.C}, {"initial", &g.initial}})
      all[name].insert(all[name].end(), x->begin(), x->end());
    for (const auto& [name, x] : {std::pair("A", &g.A),
                                  {"D", &g.D},
                                  {"dt_bias", &g.dt_bias},
                                  {"A terms", &g.A_terms},
                                  {"dt_bias terms", &g.dt_bias_terms}}) {
      if (x->empty()) continue;
      all[name].resize(x->size());
      for (size_t i = 0; i < x->size(); ++i) all[name][i] += (*x)[i];
    }
  }
  return all;
}

inline SsdVectors analytic(const SsdGradientCase& c) {
  return each_sequence(c, [](const auto& s, const auto& initial, const auto& dy, const auto& dlast) {
    return reference::ssd_scan_backward(s, initial, dy, dlast);
  });
}

}  // namespace ssm::test
