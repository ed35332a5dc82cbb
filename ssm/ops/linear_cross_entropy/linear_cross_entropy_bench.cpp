// The head of mamba-130m, loss and both gradients: three products of T x V x M.
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

#include "ssm/ops/bench_util.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

void BM_linear_cross_entropy(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0), V = state.range(1), M = state.range(2);
  const Tensor hidden = test::random_normal({T, M}, rng), dhidden = hidden.clone();
  const Weight weight{test::random_normal({V, M}, rng, 0.02f)};
  const Tensor dweight = Tensor::zeros({V, M}), targets = Tensor::zeros({T}, DType::i32);
  for (int32_t& t : targets.values<int32_t>()) t = static_cast<int32_t>(rng.below(V));
  Arena arena;
  const double seconds = test::seconds_in_arena(state, [&] {
    return linear_cross_entropy(hidden, weight, targets, {}, 1.0f / static_cast<float>(T), V,
                                {dhidden, dweight})
        .loss;
  });
  state.counters["GFLOP/s"] = 6e-9 * static_cast<double>(T * V * M * state.iterations()) / seconds;
}
BENCHMARK(BM_linear_cross_entropy)
    ->ArgNames({"T", "V", "M"})
    ->Args({256, 50280, 768})
    ->Args({1024, 4096, 256})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ssm
