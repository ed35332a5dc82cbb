// The products of a training step of mamba-130m on a card: 8 x 2048 tokens in bf16.
#include <benchmark/benchmark.h>

#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/linear/linear.h"

namespace ssm {
namespace {

enum class Way { forward, dx, dweight };

void bench_training(benchmark::State& state, Way way) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = 16384, N = state.range(0), K = state.range(1);
  const Tensor x = test::card_random({T, K}, DType::bf16), dx = test::card_random({T, K}, DType::bf16);
  const Tensor dy = test::card_random({T, N}, DType::bf16),
               dweight = Tensor::zeros({N, K}, DType::f32, kCuda);
  const Weight w{test::card_random({N, K}, DType::bf16)};
  const double seconds = test::card_seconds(1, [&](int) {
    if (way == Way::forward) linear(x, w, {}, DType::bf16);
    if (way == Way::dx) linear_backward({}, w, dy, {.dx = dx});
    if (way == Way::dweight) linear_backward(x, {}, dy, {.dweight = dweight});
  });
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["TFLOP/s"] = 2e-12 * static_cast<double>(T * N * K) / seconds;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->Args({3072, 768})->Args({768, 1536})->Args({80, 1536})->Args({1536, 48});
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(bench_training, card_forward, Way::forward)->Apply(shapes);
BENCHMARK_CAPTURE(bench_training, card_dx, Way::dx)->Apply(shapes);
BENCHMARK_CAPTURE(bench_training, card_dweight, Way::dweight)->Apply(shapes);

}  // namespace
}  // namespace ssm
