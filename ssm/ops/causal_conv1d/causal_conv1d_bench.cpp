#include "ssm/ops/causal_conv1d/causal_conv1d.h"

#include "ssm/core/allocator.h"
#include "ssm/ops/bench_util.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

constexpr int64_t kK = 4;

// C channels: 1536 in mamba-130m, 1792 in mamba2-130m (x, B and C). T rows: one sequence, or T of one token.
void conv(benchmark::State& state, bool steps, bool over_channels) {
  Rng rng(1);
  const int64_t C = state.range(0), T = state.range(1);
  const Tensor x = test::random_normal({T, C}, rng), bias = test::random_normal({C}, rng);
  const Tensor weight =
      over_channels ? test::random_normal({kK, C}, rng).transpose(0, 1) : test::random_normal({C, kK}, rng);
  const SequenceBatch batch = steps ? SequenceBatch::equal(T, 1) : SequenceBatch::single(T);
  const Tensor conv_state = test::random_normal({batch.size(), kK - 1, C}, rng);
  Arena arena;
  const int64_t bytes = (2 * T + 2 * (kK - 1) * batch.size() + kK + 1) * C * 4;
  test::bench_bytes(state, bytes, [&] {
    const ArenaScope scope(&arena);
    benchmark::DoNotOptimize(causal_conv1d(x, weight, bias, Activation::silu, batch, conv_state).raw());
  });
}

void rows(benchmark::internal::Benchmark* b) {
  b->ArgNames({"C", "T"})->UseRealTime();
  for (const int64_t C : {1536, 1792}) {
    for (const int64_t T : {1, 32, 512}) b->Args({C, T});
  }
}
void BM_causal_conv1d(benchmark::State& state) { conv(state, false, true); }
BENCHMARK(BM_causal_conv1d)->Apply(rows);
void BM_causal_conv1d_steps(benchmark::State& state) { conv(state, true, true); }
BENCHMARK(BM_causal_conv1d_steps)->Apply(rows);
void BM_causal_conv1d_as_stored(benchmark::State& state) { conv(state, false, false); }
BENCHMARK(BM_causal_conv1d_as_stored)
    ->Args({1536, 1})
    ->Args({1536, 512})
    ->ArgNames({"C", "T"})
    ->UseRealTime();

// Every gradient: reads x and dy, writes dx.
void BM_causal_conv1d_backward(benchmark::State& state) {
  Rng rng(1);
  const int64_t C = state.range(0), T = state.range(1);
  const Tensor x = test::random_normal({T, C}, rng), bias = test::random_normal({C}, rng);
  const Tensor weight = test::random_normal({kK, C}, rng).transpose(0, 1);
  const Tensor dy = test::random_normal({T, C}, rng);
  const CausalConv1dGrads grads{Tensor::empty({T, C}), Tensor::zeros({kK, C}).transpose(0, 1),
                                Tensor::zeros({C})};
  Arena arena;
  test::bench_bytes(state, 3 * T * C * 4, [&] {
    const ArenaScope scope(&arena);
    causal_conv1d_backward(x, weight, bias, Activation::silu, SequenceBatch::single(T), {}, dy, grads);
    benchmark::DoNotOptimize(grads.dx.raw());
  });
}
BENCHMARK(BM_causal_conv1d_backward)
    ->ArgNames({"C", "T"})
    ->Args({1536, 256})
    ->Args({1792, 256})
    ->Args({1536, 2048})
    ->UseRealTime();

}  // namespace
}  // namespace ssm
