// linear on a card, on the shapes of the 130m and 2.8b models at decode: bytes of weights a second, beside
// what a copy reads and writes, and each way that can take the shape.
#include "ssm/ops/bench_util.h"
#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

using Way = bool (*)(const Tensor&, const Tensor&, const Tensor&, const Tensor&);

void bench_linear(benchmark::State& state, Way way) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  Rng rng(1);
  const Tensor random = test::random_normal({N, K}, rng).to(DType::bf16);
  const Tensor x = test::random_normal({T, K}, rng).to(DType::bf16).to(kCuda);
  const Tensor y = Tensor::empty({T, N}, DType::bf16, kCuda);
  const auto sets = static_cast<int>(std::clamp<int64_t>((int64_t{256} << 20) / (N * K * 2), 2, 64));
  std::vector<Tensor> w;
  for (int i = 0; i < sets; ++i) w.push_back(random.to(kCuda));
  if (!way(x, w[0], {}, y)) return state.SkipWithError("not a shape for this way");
  const double seconds = test::card_seconds(sets, [&](int i) { way(x, w[static_cast<size_t>(i)], {}, y); });
  for (auto _ : state) state.SetIterationTime(seconds);
  static const double copy = test::card_copy_bandwidth();
  const double rate = static_cast<double>(random.bytes()) / seconds;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["% of copy"] = 100 * rate / copy;
}

void shapes(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {1, 8, 16, 32, 64, 128}) {
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{3072, 768}, {80, 1536}, {1536, 48}, {768, 1536}})
      b->Args({T, N, K});
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{10240, 2560},
                               {192, 5120},
                               {5120, 160},
                               {2560, 5120},
                               {7680, 2560},
                               {2560, 10240},
                               {2560, 2560},
                               {10576, 2560}})
      b->Args({T, N, K});
  }
  b->Args({1, 50280, 768})->Args({1, 50280, 2560});
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(bench_linear, card_few_rows, cuda::linear_few_rows)->Apply(shapes);
BENCHMARK_CAPTURE(bench_linear, card_streamed, cuda::linear_streamed)->Apply(shapes);
BENCHMARK_CAPTURE(bench_linear, card_library, cuda::linear_library)->Apply(shapes);

}  // namespace
}  // namespace ssm
