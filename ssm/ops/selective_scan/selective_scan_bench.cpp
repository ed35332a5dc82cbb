// mamba-130m's scan. `of_exp_limit` is the time that the E*N exps a token alone would take, at the rate
// measured here with the kernel's own exp on registers, over the time taken.
#include "ssm/ops/selective_scan/selective_scan.h"

#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>

#include "ssm/core/parallel.h"
#include "ssm/ops/bench_util.h"
#include "ssm/ops/selective_scan/selective_scan_cases.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/selective_scan/selective_scan_bench.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

// Computes `vectors` of exps, eight chains at a time; returns how many values that was.
int64_t run_exps(int64_t vectors, float* out) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 8;
  hn::Vec<decltype(d)> sum = hn::Zero(d), x = hn::Set(d, -0.3f);
  for (int64_t i = 0; i < vectors; i += kChains) {
    for (int c = 0; c < kChains; ++c) {
      sum = hn::Add(sum, exp2_product_in_range(d, x, hn::Set(d, 1.0f + static_cast<float>(c))));
    }
    x = hn::Add(x, hn::Set(d, 1e-9f));
  }
  *out = hn::GetLane(sum);
  return vectors * static_cast<int64_t>(hn::Lanes(d));
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(run_exps);

namespace {

double exps_per_second() {
  double best = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    std::atomic<int64_t> done = 0;
    const auto start = std::chrono::steady_clock::now();
    parallel_for(4 * num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float out;
        done += HWY_DYNAMIC_DISPATCH(run_exps)(1 << 17, &out);
        benchmark::DoNotOptimize(out);
      }
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(done) / elapsed.count());
  }
  return best;
}

void selective_scan_bench(benchmark::State& state) {
  static const double limit = exps_per_second();
  const int64_t length = state.range(0), sequences = state.range(1), E = 1536, N = 16;
  const SequenceBatch batch = test::equal_batch(sequences, length);
  Rng rng(1);
  const SelectiveScanArgs args = test::selective_scan_case(batch.total(), E, N, rng);
  std::vector<Tensor> h;  // of a model's layers: a step's states come from memory
  for (int64_t layer = 0; layer < (length == 1 ? 24 : 1); ++layer)
    h.push_back(Tensor::zeros({sequences, N, E}));
  size_t call = 0;
  const double seconds =
      test::seconds_in_arena(state, [&] { return selective_scan(args, batch, h[call++ % h.size()]); });
  const double tokens = static_cast<double>(state.iterations() * batch.total());
  state.counters["tokens/s"] = tokens / seconds;
  state.counters["of_exp_limit"] = tokens * static_cast<double>(E * N) / limit / seconds;
}

BENCHMARK(selective_scan_bench)
    ->ArgNames({"T", "B"})
    ->Args({1, 1})
    ->Args({1, 32})
    ->Args({512, 1})
    ->Args({2048, 1})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

// Every gradient; `of_exp_limit` counts the exps of both passes over time, 2 E*N a token.
void selective_scan_backward_bench(benchmark::State& state) {
  static const double limit = exps_per_second();
  const int64_t length = state.range(0), sequences = state.range(1), E = 1536, N = 16;
  const SequenceBatch batch = test::equal_batch(sequences, length);
  const int64_t T = batch.total();
  Rng rng(1);
  const SelectiveScanArgs args = test::selective_scan_case(T, E, N, rng);
  const Tensor dy = test::random_normal({T, E}, rng);
  const SelectiveScanGrads grads{
      Tensor::empty({T, E}), Tensor::empty({T, E}), Tensor::zeros({N, E}).transpose(0, 1),
      Tensor::empty({T, N}), Tensor::empty({T, N}), Tensor::zeros({E}),
      Tensor::empty({T, E}), Tensor::zeros({E})};
  const double seconds = test::seconds_in_arena(state, [&] {
    selective_scan_backward(args, batch, Tensor(), dy, grads);
    return grads.du;
  });
  const double tokens = static_cast<double>(state.iterations() * T);
  state.counters["tokens/s"] = tokens / seconds;
  state.counters["of_exp_limit"] = 2 * tokens * static_cast<double>(E * N) / limit / seconds;
}

BENCHMARK(selective_scan_backward_bench)
    ->ArgNames({"T", "B"})
    ->Args({256, 1})
    ->Args({256, 4})
    ->Args({4096, 1})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace ssm
#endif
