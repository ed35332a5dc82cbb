// Layer norms on a card in bf16 beside a copy of as many bytes: one row of a decode step, and 8 x 2048 rows
// of Pythia's widths, forward and backward.
#include <benchmark/benchmark.h>

#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/layer_norm/layer_norm.h"

namespace ssm {
namespace {

enum class Pass { add, two, add_backward };

void bench_norm(benchmark::State& state, Pass pass) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = state.range(0), M = state.range(1);
  const auto tensor = [&](DType dtype) { return test::card_random({T, M}, dtype); };
  const Tensor x = tensor(DType::bf16), dx = tensor(DType::bf16), dresidual = tensor(DType::f32);
  const Tensor weight = test::card_random({M}, DType::f32), bias = test::card_random({M}, DType::f32);
  const Tensor dweight = Tensor::zeros({M}, DType::f32, kCuda), dbias = Tensor::zeros({M}, DType::f32, kCuda);
  const LayerNormParameters norm{weight, bias, 1e-5f};
  Tensor residual = tensor(DType::f32);
  const double seconds = test::card_seconds(1, [&](int) {
    if (pass == Pass::add)
      add_layer_norm(x, residual, weight, bias, 1e-5f);
    else if (pass == Pass::two)
      layer_norms(x, residual, norm, norm, DType::bf16);
    else
      add_layer_norm_backward(residual, weight, 1e-5f, x, dresidual,
                              {.dx = dx, .dweight = dweight, .dbias = dbias});
  });
  const double bytes = static_cast<double>(T * M) * (pass == Pass::add ? 12 : pass == Pass::two ? 14 : 16);
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["GB/s"] = 1e-9 * bytes / seconds;
  state.counters["of_copy"] = bytes / seconds / test::card_copy_bandwidth();
}

void widths(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "M"})->ArgsProduct({{1, 16384}, {768, 2560, 5120}});
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(bench_norm, card_add_layer_norm, Pass::add)->Apply(widths);
BENCHMARK_CAPTURE(bench_norm, card_layer_norms, Pass::two)->Apply(widths);
BENCHMARK_CAPTURE(bench_norm, card_add_layer_norm_backward, Pass::add_backward)->Apply(widths);

}  // namespace
}  // namespace ssm
