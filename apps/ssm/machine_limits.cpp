#include "apps/ssm/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "apps/ssm/output.h"
#include "ssm/core/allocator.h"
#include "ssm/core/graph.h"
#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::app {
namespace {

constexpr int64_t kBufferBytes = int64_t{1} << 30;  // beyond the last level cache of any server
constexpr int64_t kCardBytes = int64_t{256} << 20;  // beyond a card's
constexpr int64_t kBlockWords = 1 << 16;
constexpr int kRuns = 7;
constexpr double kRoundSeconds = 2e-3;  // of a card's graph, at least
constexpr int kMostCalls = 1000;        // in it

template <class F>
double seconds_taken(F&& f) {
  const double start = seconds_now();
  f();
  return seconds_now() - start;
}

template <class F>
double best_seconds(int runs, F&& f) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) best = std::min(best, seconds_taken(f));
  return best;
}

Tensor random_matrix(int64_t rows, int64_t columns) {
  Tensor t = Tensor::empty({rows, columns});
  Rng rng(rows);
  for (float& x : t.values<float>()) x = rng.uniform() - 0.5f;
  return t;
}

double read_bandwidth() {
  constexpr int64_t kWords = kBufferBytes / 8;
  const auto buffer = allocate_bytes(kBufferBytes);
  auto* words = reinterpret_cast<uint64_t*>(buffer.get());
  parallel_for(kWords, kBlockWords,
               [&](int64_t begin, int64_t end) { std::fill(words + begin, words + end, 1); });
  std::atomic<uint64_t> total{0};
  const double seconds = best_seconds(kRuns, [&] {
    parallel_for(kWords, kBlockWords, [&](int64_t begin, int64_t end) {
      uint64_t sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += words[i];
      total.fetch_add(sum, std::memory_order_relaxed);
    });
  });
  SSM_CHECK(total.load() == uint64_t{kRuns} * kWords, "the machine cannot add");
  return static_cast<double>(kBufferBytes) / seconds;
}

double copy_bandwidth(Device device) {
  const Tensor from = Tensor::zeros({kCardBytes}, DType::u8, device);
  const Tensor to = Tensor::zeros({kCardBytes}, DType::u8, device);
  const double seconds =
      seconds_of(device, [&](int) { copy_bytes(to.raw(), device, from.raw(), device, from.bytes()); });
  return 2.0 * static_cast<double>(kCardBytes) / seconds;
}

double median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

#ifdef SSM_CUDA
double card_seconds_of(const std::function<void(int)>& body, bool replayed) {
  Arena arena;
  ArenaScope scope(&arena);
  body(0);  // what is made at first use must not fall into the capture
  synchronize(kCuda);
  const double once = seconds_taken([&] {
    body(1);
    synchronize(kCuda);
  });
  const int calls = std::clamp(static_cast<int>(kRoundSeconds / once) + 8, 8, kMostCalls);
  const auto all = [&] {
    for (int i = 0; i < calls; ++i) body(i);
  };
  std::optional<Graph> graph;
  if (replayed) graph.emplace(all);
  std::vector<double> rounds;
  for (int round = 0; round < 3 * kRuns; ++round) {
    synchronize(kCuda);
    rounds.push_back(seconds_taken([&] {
      graph ? graph->replay() : all();
      synchronize(kCuda);
    }));
  }
  return median(rounds) / calls;
}
#endif

}  // namespace

double seconds_of(Device device, const std::function<void(int)>& body, [[maybe_unused]] bool replayed) {
#ifdef SSM_CUDA
  if (device.is_cuda()) return card_seconds_of(body, replayed);
#endif
  SSM_CHECK(!device.is_cuda(), "{}", why_unavailable(device));
  Arena arena;
  ArenaScope scope(&arena);
  body(0);
  std::vector<double> rounds;
  for (int i = 1; i <= kRuns; ++i) rounds.push_back(seconds_taken([&] { body(i); }));
  return median(rounds);
}

double measure_bandwidth(Device device) {
  return device.is_cuda() ? copy_bandwidth(device) : read_bandwidth();
}

double measure_gemm_rate(Device device, DType stored, DType compute) {
  const int64_t rows = device.is_cuda() ? 8192 : 512, side = device.is_cuda() ? 8192 : 2048;
  const DType weight_type = device.is_cuda() ? compute : stored;
  const Tensor x = random_matrix(rows, side).to(activation_dtype(compute, device)).to(device);
  const Weight weight = random_matrix(side, side).to(weight_type).to(device);
  const auto product = [&](int) { linear(x, weight, {}, compute); };
  double seconds = 1e30;
  for (int trial = 0; trial < 2; ++trial) seconds = std::min(seconds, seconds_of(device, product));
  return 2.0 * static_cast<double>(rows * side * side) / seconds;
}

}  // namespace ssm::app
