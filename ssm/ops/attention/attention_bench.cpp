#include "ssm/ops/attention/attention.h"

#include "ssm/ops/bench_util.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

// pythia-160m's heads: T tokens after `context` others.
void BM_attention(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0), context = state.range(1);
  const AttentionHeads h{.heads = 12, .kv_heads = 12, .head_dim = 64, .rotary_dim = 16, .by_head = true};
  KvCache before(1, h.kv_heads, h.head_dim), kv(1, h.kv_heads, h.head_dim);
  if (context > 0)
    attention(test::random_normal({context, h.width()}, rng), h, SequenceBatch::single(context), &before);
  const Tensor qkv = test::random_normal({T, h.width()}, rng);
  const double products = 4.0 * static_cast<double>(T * h.heads * h.head_dim * (context + (T + 1) / 2));
  Arena arena;
  for (auto _ : state) {
    const ArenaScope scope(&arena);
    kv.copy(0, before, 0);
    benchmark::DoNotOptimize(attention(qkv, h, SequenceBatch::single(T), &kv).raw());
  }
  state.counters["flop/s"] = benchmark::Counter(products, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["keys and values/s"] =
      benchmark::Counter(static_cast<double>((context + T) * h.heads * h.head_dim * 8),
                         benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1024);
}
BENCHMARK(BM_attention)
    ->ArgNames({"T", "context"})
    ->Args({512, 0})
    ->Args({512, 2048})
    ->Args({1, 200})
    ->Args({1, 2048})
    ->Args({1, 32768})
    ->UseRealTime();

}  // namespace
}  // namespace ssm
