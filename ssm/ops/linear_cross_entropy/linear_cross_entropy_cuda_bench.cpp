// The head of mamba-130m in training on a card: 8 x 2048 tokens in bf16, loss and both gradients.
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

#include <benchmark/benchmark.h>

#include "ssm/ops/cuda/bench_cuda.h"

namespace ssm {
namespace {

void BM_linear_cross_entropy_card(benchmark::State& state) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = 16384, V = state.range(0), M = state.range(1);
  const Tensor hidden = test::card_random({T, M}, DType::bf16), dhidden = hidden.clone();
  const Weight weight{test::card_random({V, M}, DType::bf16, 0.02f)};
  const Tensor dweight = Tensor::zeros({V, M}, DType::f32, kCuda), targets = Tensor::zeros({T}, DType::i32);
  Rng rng(1);
  for (int32_t& t : targets.values<int32_t>()) t = static_cast<int32_t>(rng.below(V));
  const Tensor ids = targets.to(kCuda);
  const double seconds = test::card_seconds(1, [&](int) {
    linear_cross_entropy(hidden, weight, ids, {}, 1.0f / static_cast<float>(T), V, {dhidden, dweight});
  });
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["TFLOP/s"] = 6e-12 * static_cast<double>(T * V * M) / seconds;
}
BENCHMARK(BM_linear_cross_entropy_card)
    ->ArgNames({"V", "M"})
    ->Args({50280, 768})
    ->Args({4096, 256})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ssm
