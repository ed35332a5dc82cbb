#include "ssm/ops/rms_norm/rms_norm.h"

#include "ssm/core/allocator.h"
#include "ssm/ops/bench_util.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

// mamba-130m and mamba2-130m: M 768 between blocks, 1536 gated; T rows.
constexpr int64_t kM = 768, kE = 1536;
void rows(benchmark::internal::Benchmark* b) { b->ArgName("T")->Arg(1)->Arg(32)->Arg(512)->UseRealTime(); }

void BM_rms_norm(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0);
  const Tensor x = test::random_normal({T, kM}, rng), weight = test::random_normal({kM}, rng);
  Arena arena;
  test::bench_bytes(state, 2 * T * kM * 4, [&] {
    const ArenaScope scope(&arena);
    benchmark::DoNotOptimize(rms_norm(x, weight, 1e-5f).raw());
  });
}
BENCHMARK(BM_rms_norm)->Apply(rows);

void BM_add_rms_norm(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0);
  const Tensor x = test::random_normal({T, kM}, rng, 1e-6f), weight = test::random_normal({kM}, rng);
  Tensor residual = test::random_normal({T, kM}, rng);
  Arena arena;
  test::bench_bytes(state, 4 * T * kM * 4, [&] {
    const ArenaScope scope(&arena);
    benchmark::DoNotOptimize(add_rms_norm(x, residual, weight, 1e-5f).raw());
  });
}
BENCHMARK(BM_add_rms_norm)->Apply(rows);

void BM_gated_rms_norm(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0);
  const Tensor x = test::random_normal({T, kE}, rng), z = test::random_normal({T, kE}, rng);
  const Tensor weight = test::random_normal({kE}, rng);
  Arena arena;
  test::bench_bytes(state, 3 * T * kE * 4, [&] {
    const ArenaScope scope(&arena);
    benchmark::DoNotOptimize(gated_rms_norm(x, z, weight, 1, 1e-5f).raw());
  });
}
BENCHMARK(BM_gated_rms_norm)->Apply(rows);

// Backwards of 256 and 2048 rows.
void BM_add_rms_norm_backward(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0);
  const Tensor residual = test::random_normal({T, kM}, rng), weight = test::random_normal({kM}, rng);
  const Tensor dy = test::random_normal({T, kM}, rng), dresidual = test::random_normal({T, kM}, rng);
  const Tensor dweight = Tensor::zeros({kM});
  test::bench_bytes(state, 4 * T * kM * 4,
                    [&] { add_rms_norm_backward(residual, weight, 1e-5f, dy, dresidual, {}, dweight); });
}
BENCHMARK(BM_add_rms_norm_backward)->ArgName("T")->Arg(256)->Arg(2048)->UseRealTime();

void BM_gated_rms_norm_backward(benchmark::State& state) {
  Rng rng(1);
  const int64_t T = state.range(0);
  const auto tensor = [&] { return test::random_normal({T, kE}, rng); };
  const Tensor x = tensor(), z = tensor(), dy = tensor(), dx = tensor(), dz = tensor();
  const Tensor weight = test::random_normal({kE}, rng), dweight = Tensor::zeros({kE});
  test::bench_bytes(state, 5 * T * kE * 4,
                    [&] { gated_rms_norm_backward(x, z, weight, 1, 1e-5f, dy, dx, dz, dweight); });
}
BENCHMARK(BM_gated_rms_norm_backward)->ArgName("T")->Arg(256)->Arg(2048)->UseRealTime();

}  // namespace
}  // namespace ssm
