// AdamW and the norm on a matrix of mamba-130m, from memory.
#include "ssm/ops/adamw/adamw.h"

#include "ssm/ops/bench_util.h"
#include "ssm/ops/gradient_norm/gradient_norm.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

constexpr int64_t kN = int64_t{50280} * 768;

void BM_adamw(benchmark::State& state) {
  Rng rng(1);
  const bool narrow = state.range(0);
  const Tensor p = Tensor::zeros({kN}), g = test::random_normal({kN}, rng), m = Tensor::zeros({kN});
  const Tensor v = Tensor::zeros({kN}), copy = narrow ? Tensor::zeros({kN}, DType::bf16) : Tensor{};
  AdamW options;
  test::bench_bytes(state, kN * (narrow ? 30 : 28), [&] {
    const AdamWParameter parameter{p, g, m, v, copy};
    adamw(options, {&parameter, 1});
    ++options.step;
  });
}
BENCHMARK(BM_adamw)->ArgName("narrow")->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_gradient_norm(benchmark::State& state) {
  Rng rng(1);
  const Tensor g = test::random_normal({kN}, rng);
  test::bench_bytes(state, kN * 4, [&] {
    benchmark::DoNotOptimize(gradient_norm({&g, 1}, 1.0f).norm.raw());
  });
}
BENCHMARK(BM_gradient_norm)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ssm
