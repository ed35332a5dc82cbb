// AdamW and the norm over a model of mamba-130m's parameters on a card, beside a copy of as many bytes.
#include "ssm/ops/adamw/adamw.h"

#include <benchmark/benchmark.h>

#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/gradient_norm/gradient_norm.h"

namespace ssm {
namespace {

std::vector<AdamWParameter> parameters() {
  std::vector<AdamWParameter> all;
  const auto add = [&](const Shape& shape, bool narrow) {
    all.push_back({test::card_random(shape, DType::f32, 0.02f), test::card_random(shape, DType::f32, 1e-3f),
                   Tensor::zeros(shape, DType::f32, kCuda), Tensor::zeros(shape, DType::f32, kCuda),
                   narrow ? Tensor::zeros(shape, DType::bf16, kCuda) : Tensor{}});
  };
  add({50280, 768}, true);
  for (int layer = 0; layer < 24; ++layer) {
    add({3072, 768}, true), add({768, 1536}, true), add({80, 1536}, true), add({1536, 48}, true);
    add({1536, 16}, false), add({1536, 4}, false), add({768}, false);
    for (int i = 0; i < 3; ++i) add({1536}, false);
  }
  return all;
}

void report(benchmark::State& state, double seconds, double bytes) {
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["GB/s"] = 1e-9 * bytes / seconds;
  state.counters["of_copy"] = bytes / seconds / test::card_copy_bandwidth();
}

void BM_adamw_card(benchmark::State& state) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const std::vector<AdamWParameter> all = parameters();
  double bytes = 0;
  for (const AdamWParameter& a : all)
    bytes += static_cast<double>(a.p.numel()) * (a.narrow.defined() ? 30 : 28);
  report(state, test::card_seconds(1, [&](int) { adamw({}, all); }), bytes);
}
BENCHMARK(BM_adamw_card)->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);

void BM_gradient_norm_card(benchmark::State& state) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  std::vector<Tensor> gradients;
  double bytes = 0;
  for (const AdamWParameter& a : parameters())
    gradients.push_back(a.g), bytes += static_cast<double>(a.g.bytes());
  report(state, test::card_seconds(1, [&](int) { gradient_norm(gradients, 1.0f); }), bytes);
}
BENCHMARK(BM_gradient_norm_card)->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ssm
