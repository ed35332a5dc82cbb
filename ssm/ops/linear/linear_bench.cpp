// linear on the shapes of the 130m models, beside the register peak of the same multiply measured in this
// program.
#include <benchmark/benchmark.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/bench_util.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/test_packed.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

void bench_linear(benchmark::State& state, DType weights, DType compute) {
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  Rng rng(1);
  const Tensor x = test::random_normal({T, K}, rng);
  // Decode reads weights from memory: enough copies that none stays in cache.
  const int64_t copies = T <= 32 ? std::max<int64_t>(1, (int64_t{256} << 20) / (N * K * 2)) : 1;
  std::vector<Weight> w;
  const Tensor random = test::random_normal({N, K}, rng).to(weights);
  for (int64_t i = 0; i < copies; ++i) w.emplace_back(random.clone());
  Arena arena;
  size_t i = 0;
  const double start = test::seconds_now();
  for (auto _ : state) {
    ArenaScope scope(&arena);
    benchmark::DoNotOptimize(linear(x, w[i++ % w.size()], {}, compute).raw());
  }
  const double calls_per_second = static_cast<double>(state.iterations()) / (test::seconds_now() - start);
  state.counters["GFLOP/s"] = calls_per_second * 2e-9 * static_cast<double>(T * N * K);
  state.counters["GB/s"] = calls_per_second * 1e-9 * static_cast<double>(bytes_of(w[0]));
}

void shapes(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {1, 8, 32, 512}) {
    b->Args({T, 3072, 768})->Args({T, 768, 1536});
  }
  b->Args({512, 80, 1536})
      ->Args({512, 1536, 48})
      ->Args({1, 50280, 768})
      ->UseRealTime()
      ->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(bench_linear, f32, DType::f32, DType::f32)->Apply(shapes);
BENCHMARK_CAPTURE(bench_linear, bf16, DType::bf16, DType::bf16)->Apply(shapes);
BENCHMARK_CAPTURE(bench_linear, f32_on_bf16, DType::bf16, DType::f32)->Apply(shapes);

// Bytes a second that all threads together add up of memory no cache holds.
double read_bandwidth() {
  static const double best = [] {
    const Tensor memory = Tensor::zeros({int64_t{256} << 20}, DType::u8);
    double most = 0;
    for (int trial = 0; trial < 10; ++trial) {
      const double start = test::seconds_now();
      parallel_for(memory.numel() / 8, 1 << 13, [&](int64_t begin, int64_t end) {
        const auto* const words = reinterpret_cast<const uint64_t*>(memory.raw());
        uint64_t sum[8] = {};
        for (int64_t i = begin; i < end; i += 8) {
          for (int64_t j = 0; j < 8; ++j) sum[j] += words[i + j];
        }
        benchmark::DoNotOptimize(sum);
      });
      most = std::max(most, static_cast<double>(memory.bytes()) / (test::seconds_now() - start));
    }
    return most;
  }();
  return best;
}

// Decode reads packed weights from memory, as many as no cache holds: of_read is the part of the bandwidth.
void bench_packed(benchmark::State& state, const char* type, int64_t group) {
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  Rng rng(1);
  const QuantizedTensor one = test::random_packed(*quant_format(type, group), N, K, rng);
  const auto bytes = static_cast<int64_t>(one.bytes.bytes());
  const int64_t copies = T <= 32 ? std::max<int64_t>(1, (int64_t{192} << 20) / bytes) : 1;
  std::vector<Weight> w;
  for (int64_t i = 0; i < copies; ++i) w.emplace_back(packed_view(one.format, one.shape, one.bytes.clone()));
  const Tensor x = test::random_normal({T, K}, rng);
  Arena arena;
  size_t i = 0;
  const double start = test::seconds_now();
  for (auto _ : state) {
    ArenaScope scope(&arena);
    benchmark::DoNotOptimize(linear(x, w[i++ % w.size()]).raw());
  }
  const double calls = static_cast<double>(state.iterations()) / (test::seconds_now() - start);
  state.counters["GFLOP/s"] = calls * 2e-9 * static_cast<double>(T * N * K);
  state.counters["GB/s"] = calls * 1e-9 * static_cast<double>(bytes);
  state.counters["of_read"] = calls * static_cast<double>(bytes) / read_bandwidth();
}

void packed_shapes(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {1, 2, 4, 8, 32, 512}) b->Args({T, 3072, 768});
  b->Args({1, 768, 1536})->Args({1, 50280, 768})->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(bench_packed, q8_0, "q8_0", 32)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, q6_k, "q6_k", 256)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, q5_k, "q5_k", 256)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, q5_0, "q5_0", 32)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, q4_k, "q4_k", 256)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, q4_0, "q4_0", 32)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, int8_64, "int8", 64)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, int4_64, "int4", 64)->Apply(packed_shapes);
BENCHMARK_CAPTURE(bench_packed, int4_128, "int4", 128)->Apply(packed_shapes);

// The two products of the backward; T N K twice each as the forward has it once.
void bench_backward(benchmark::State& state, bool input, DType weights) {
  const int64_t T = state.range(0), N = state.range(1), K = state.range(2);
  Rng rng(1);
  const Tensor x = test::random_normal({T, K}, rng), dy = test::random_normal({T, N}, rng);
  const Weight w{test::random_normal({N, K}, rng).to(weights)};
  LinearGrads grads;
  (input ? grads.dx : grads.dweight) = Tensor::zeros(input ? Shape{T, K} : Shape{N, K});
  const double start = test::seconds_now();
  for (auto _ : state) linear_backward(x, w, dy, grads);
  const double seconds = test::seconds_now() - start, calls = static_cast<double>(state.iterations());
  state.counters["GFLOP/s"] = calls * 2e-9 * static_cast<double>(T * N * K) / seconds;
}

void backward_shapes(benchmark::internal::Benchmark* b) {
  for (const int64_t T : {256, 2048}) {
    b->Args({T, 3072, 768})->Args({T, 768, 1536})->Args({T, 80, 1536})->Args({T, 1536, 48});
  }
  b->Args({256, 50280, 768})->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(bench_linear, forward, DType::f32, DType::f32)->Apply(backward_shapes);
BENCHMARK_CAPTURE(bench_backward, dx, true, DType::f32)->Apply(backward_shapes);
BENCHMARK_CAPTURE(bench_backward, dx_on_bf16, true, DType::bf16)->Apply(backward_shapes);
BENCHMARK_CAPTURE(bench_backward, dweight, false, DType::f32)->Apply(backward_shapes);

}  // namespace
}  // namespace ssm
