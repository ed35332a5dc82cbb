#include "apps/ssm/machine_limits.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "apps/ssm/output.h"
#include "ssm/core/allocator.h"
#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::app {
namespace {

constexpr int64_t kBufferBytes = int64_t{1} << 30;  // beyond the last level cache of any server
constexpr int64_t kBlockWords = 1 << 16;
constexpr int kRuns = 7;

template <class F>
double best_seconds(int runs, F&& f) {
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const double start = seconds_now();
    f();
    best = std::min(best, seconds_now() - start);
  }
  return best;
}

Tensor random_matrix(int64_t rows, int64_t columns) {
  Tensor t = Tensor::empty({rows, columns});
  Rng rng(rows);
  for (float& x : t.values<float>()) x = rng.uniform() - 0.5f;
  return t;
}

}  // namespace

double measure_read_bandwidth() {
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

double measure_gemm_rate(DType stored, DType compute) {
  constexpr int64_t kRows = 512, kSide = 2048;
  const Tensor x = random_matrix(kRows, kSide);
  const Weight weight = random_matrix(kSide, kSide).to(stored);
  Arena arena;
  const double seconds = best_seconds(2 * kRuns, [&] {
    ArenaScope scope(&arena);
    linear(x, weight, {}, compute);
  });
  return 2.0 * kRows * kSide * kSide / seconds;
}

}  // namespace ssm::app
