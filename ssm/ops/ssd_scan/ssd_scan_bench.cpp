// mamba2-130m's scan. `of_fma_peak` counts the chunked form's multiply-adds (2 N P + P L / 2 a token and
// head, and N L / 2 a group) against the rate measured here on registers; `of_copy` counts one read and one
// write of the states a call touches against memcpy.
#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "ssm/core/parallel.h"
#include "ssm/ops/bench_util.h"
#include "ssm/ops/ssd_scan/ssd_scan.h"
#include "ssm/ops/ssd_scan/ssd_scan_cases.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/ssd_scan/ssd_scan_bench.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// `rounds` of eight independent vector multiply-adds; returns how many scalar ones that was.
int64_t run_fmas(int64_t rounds, float* out) {
  const hn::ScalableTag<float> d;
  constexpr int kChains = 8;
  hn::Vec<decltype(d)> sum[kChains];
  for (auto& x : sum) x = hn::Set(d, *out);
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 0.5f);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& x : sum) x = hn::MulAdd(x, a, b);
  }
  for (auto& x : sum) *out += hn::GetLane(x);
  return rounds * kChains * static_cast<int64_t>(hn::Lanes(d));
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(run_fmas);

namespace {

// The best of ten runs, in units a second.
template <class Run>
double best_rate(Run&& run) {
  double best = 0;
  for (int repeat = 0; repeat < 10; ++repeat) {
    std::atomic<int64_t> done = 0;
    const auto start = std::chrono::steady_clock::now();
    parallel_for(16 * num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) done += run(i);
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(done) / elapsed.count());
  }
  return best;
}

double fmas_per_second() {
  return best_rate([](int64_t) {
    float out = 1;
    const int64_t done = HWY_DYNAMIC_DISPATCH(run_fmas)(1 << 16, &out);
    benchmark::DoNotOptimize(out);
    return done;
  });
}

double copied_bytes_per_second() {  // read plus written
  constexpr int64_t kBlock = 4 << 20;
  const Tensor from = Tensor::zeros({16 * num_threads(), kBlock / 4}), to = from.clone();
  return best_rate([&](int64_t i) {
    std::memcpy(to.raw() + i * kBlock, from.raw() + i * kBlock, kBlock);
    return 2 * kBlock;
  });
}

void ssd_scan_bench(benchmark::State& state) {
  static const double fma_limit = fmas_per_second(), copy_limit = copied_bytes_per_second();
  const int64_t length = state.range(0), sequences = state.range(1);
  const int64_t H = 24, P = 64, G = 1, N = 128;
  const SequenceBatch batch = SequenceBatch::equal(sequences, length);
  Rng rng(1);
  const SsdScanArgs args = test::ssd_scan_case(batch.total(), H, P, G, N, rng);
  const Tensor h = Tensor::zeros({sequences, H, N, P});
  const double seconds = test::seconds_in_arena(state, [&] { return ssd_scan(args, batch, h); });
  const auto calls = static_cast<double>(state.iterations());
  const auto tokens = calls * static_cast<double>(batch.total());
  state.counters["tokens/s"] = tokens / seconds;
  if (batch.is_step()) {
    state.counters["of_copy"] = 2.0 * calls * static_cast<double>(h.bytes()) / copy_limit / seconds;
  } else {
    const int64_t fmas = H * (2 * N * P + P * kSsdChunk / 2) + G * N * kSsdChunk / 2;
    state.counters["of_fma_peak"] = tokens * static_cast<double>(fmas) / fma_limit / seconds;
  }
}

BENCHMARK(ssd_scan_bench)
    ->ArgNames({"T", "B"})
    ->Args({1, 1})
    ->Args({1, 32})
    ->Args({512, 1})
    ->Args({2048, 1})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

// Every gradient. A head's chunk multiplies for dx, dC, dB, dh and h (N*P each) and for dM and M^T dy (half
// of L*P each); S, dS B and dS^T C are the group's.
void ssd_scan_backward_bench(benchmark::State& state) {
  static const double fma_limit = fmas_per_second();
  const int64_t length = state.range(0), sequences = state.range(1);
  const int64_t H = 24, P = 64, G = 1, N = 128;
  const SequenceBatch batch = SequenceBatch::equal(sequences, length);
  const int64_t T = batch.total();
  Rng rng(1);
  const SsdScanArgs args = test::ssd_scan_case(T, H, P, G, N, rng);
  const Tensor dy = test::random_normal({T, H * P}, rng);
  const SsdScanGrads grads{Tensor::empty({T, H * P}), Tensor::empty({T, H}),     Tensor::zeros({H}),
                           Tensor::empty({T, G * N}), Tensor::empty({T, G * N}), Tensor::zeros({H}),
                           Tensor::zeros({H})};
  const double seconds = test::seconds_in_arena(state, [&] {
    ssd_scan_backward(args, batch, Tensor(), dy, grads);
    return grads.dx;
  });
  const auto tokens = static_cast<double>(state.iterations() * T);
  const int64_t fmas = H * (5 * N * P + P * kSsdChunk) + G * N * 3 * kSsdChunk / 2;
  state.counters["tokens/s"] = tokens / seconds;
  state.counters["of_fma_peak"] = tokens * static_cast<double>(fmas) / fma_limit / seconds;
}

BENCHMARK(ssd_scan_backward_bench)
    ->ArgNames({"T", "B"})
    ->Args({256, 1})
    ->Args({256, 4})
    ->Args({4096, 1})
    ->Unit(benchmark::kMicrosecond)
    ->UseRealTime();

}  // namespace
}  // namespace ssm
#endif
