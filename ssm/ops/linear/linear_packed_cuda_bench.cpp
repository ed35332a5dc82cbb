// linear with packed weights on a card, on the shapes of a 2.8b model's layer: bytes of weights a second,
// beside what a copy reads and writes, by the kernel of few rows and by dequantized slabs.
#include "ssm/ops/bench_util.h"
#include "ssm/ops/cuda/bench_cuda.h"
#include "ssm/ops/linear/linear_packed_cuda.h"
#include "ssm/ops/test_packed.h"
#include "ssm/ops/test_util.h"
#include "ssm/quant/card_layout.h"

namespace ssm {
namespace {

using Way = void (*)(const Tensor&, const QuantizedTensor&, const Tensor&, const Tensor&);

void bench_packed(benchmark::State& state, Way way, const char* type, int64_t group) {
  if (const std::string why = why_unavailable(kCuda); !why.empty()) return state.SkipWithError(why.c_str());
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  Rng rng(1);
  const QuantizedTensor one = to_card(test::random_packed(*quant_format(type, group), N, K, rng), kCuda);
  const Tensor x = test::random_normal({T, K}, rng).to(DType::bf16).to(kCuda);
  const Tensor y = Tensor::empty({T, N}, DType::bf16, kCuda);
  const auto bytes = static_cast<int64_t>(one.bytes.bytes());
  const auto sets = static_cast<int>(std::clamp<int64_t>((int64_t{256} << 20) / bytes, 2, 64));
  std::vector<QuantizedTensor> w;
  for (int i = 0; i < sets; ++i) w.push_back({one.format, one.shape, one.bytes.clone()});
  const double seconds = test::card_seconds(sets, [&](int i) { way(x, w[static_cast<size_t>(i)], {}, y); });
  for (auto _ : state) state.SetIterationTime(seconds);
  static const double copy = test::card_copy_bandwidth();
  const double rate = static_cast<double>(bytes) / seconds;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["% of copy"] = 100 * rate / copy;
}

void few(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {1, 8, 32, 64}) {
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{10240, 2560}, {2560, 5120}}) b->Args({T, N, K});
  }
  b->Args({1, 192, 5120})->Args({1, 5120, 160})->Args({1, 50280, 2560});
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}
void many(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {32, 64, 128, 2048}) {
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{10240, 2560}, {2560, 5120}}) b->Args({T, N, K});
  }
  b->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(bench_packed, card_few_int4_128, cuda::linear_packed_few_rows, "int4", 128)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_int4_32, cuda::linear_packed_few_rows, "int4", 32)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_int8_128, cuda::linear_packed_few_rows, "int8", 128)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_q8_0, cuda::linear_packed_few_rows, "q8_0", 0)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_q4_k, cuda::linear_packed_few_rows, "q4_k", 0)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_q4_0, cuda::linear_packed_few_rows, "q4_0", 0)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_few_q6_k, cuda::linear_packed_few_rows, "q6_k", 0)->Apply(few);
BENCHMARK_CAPTURE(bench_packed, card_many_int4_128, cuda::linear_packed_many_rows, "int4", 128)->Apply(many);
BENCHMARK_CAPTURE(bench_packed, card_many_q8_0, cuda::linear_packed_many_rows, "q8_0", 0)->Apply(many);

}  // namespace
}  // namespace ssm
