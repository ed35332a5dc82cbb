#include "ssm/ops/sampling/sampling.h"

#include "ssm/ops/bench_util.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

// A row of mamba-130m's vocabulary. `scale` 4 is about as peaked as a language model's; 1 is nearly flat.
void sampling(benchmark::State& state, SamplingParams params, float scale) {
  Rng rng(1);
  const int64_t B = state.range(0), V = 50280, vocab = 50277;
  const Tensor logits = test::random_normal({B, V}, rng, scale), seen = Tensor::zeros({B, V}, DType::u8);
  std::vector<int32_t> slots;
  for (int64_t b = 0; b < B; ++b) {
    slots.push_back(static_cast<int32_t>(b));
    for (int64_t i = 0; i < 500; ++i) seen.data<uint8_t>()[b * V + rng.below(vocab)] = 1;
  }
  const std::vector<SamplingParams> all(static_cast<size_t>(B), params);
  std::vector<int64_t> positions(static_cast<size_t>(B));
  test::bench_bytes(state, B * V * 4, [&] {
    for (int64_t& position : positions) ++position;
    benchmark::DoNotOptimize(sample(logits, vocab, all, seen, slots, positions).raw());
  });
}

void BM_sampling(benchmark::State& state, SamplingParams params, float scale) {
  sampling(state, params, scale);
}
#define SSM_BENCH_SAMPLING(name, scale, ...)                               \
  BENCHMARK_CAPTURE(BM_sampling, name, SamplingParams{__VA_ARGS__}, scale) \
      ->ArgName("B")                                                       \
      ->Arg(1)                                                             \
      ->Arg(32)                                                            \
      ->UseRealTime()                                                      \
      ->Unit(benchmark::kMicrosecond)
SSM_BENCH_SAMPLING(greedy, 4, .temperature = 0);
SSM_BENCH_SAMPLING(greedy_penalty, 4, .temperature = 0, .repetition_penalty = 1.2f);
SSM_BENCH_SAMPLING(plain, 4, .temperature = 0.8f);
SSM_BENCH_SAMPLING(min_p, 4, .min_p = 0.05f);
SSM_BENCH_SAMPLING(top_k_50, 4, .top_k = 50);
SSM_BENCH_SAMPLING(top_k_50_top_p, 4, .top_k = 50, .top_p = 0.9f);
SSM_BENCH_SAMPLING(top_k_20000, 1, .top_k = 20000);
SSM_BENCH_SAMPLING(top_p, 4, .top_p = 0.9f);
SSM_BENCH_SAMPLING(top_p_flat, 1, .top_p = 0.9f);

}  // namespace
}  // namespace ssm
