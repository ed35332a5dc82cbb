// The norms' backwards on a card: 8 x 2048 rows of mamba-130m and 2.8b in bf16, beside a copy of as many
// bytes.
#include <benchmark/benchmark.h>

#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/rms_norm/rms_norm.h"

namespace ssm {
namespace {

void bench_norm(benchmark::State& state, bool gated) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = 16384, M = state.range(0);
  const auto tensor = [&](DType dtype) { return test::card_random({T, M}, dtype); };
  const Tensor dy = tensor(DType::bf16), dx = tensor(DType::bf16), dz = tensor(DType::bf16),
               z = tensor(DType::bf16);
  const Tensor x = tensor(gated ? DType::bf16 : DType::f32), dresidual = tensor(DType::f32);
  const Tensor weight = test::card_random({M}, DType::f32), dweight = Tensor::zeros({M}, DType::f32, kCuda);
  const double seconds = test::card_seconds(1, [&](int) {
    if (gated)
      gated_rms_norm_backward(x, z, weight, 1, 1e-5f, dy, dx, dz, dweight);
    else
      add_rms_norm_backward(x, weight, 1e-5f, dy, dresidual, dx, dweight);
  });
  const double bytes = static_cast<double>(T * M) * (gated ? 10 : 16);
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["GB/s"] = 1e-9 * bytes / seconds;
  state.counters["of_copy"] = bytes / seconds / test::card_copy_bandwidth();
}

void widths(benchmark::internal::Benchmark* b) {
  b->ArgName("M")->Arg(768)->Arg(1536)->Arg(2560)->Arg(5120);
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}
BENCHMARK_CAPTURE(bench_norm, card_add_backward, false)->Apply(widths);
BENCHMARK_CAPTURE(bench_norm, card_gated_backward, true)->Apply(widths);

}  // namespace
}  // namespace ssm
