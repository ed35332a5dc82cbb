// What op benches share: bytes per second, and what part that is of a copy of as many bytes by as many
// threads.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <vector>

#include "ssm/core/allocator.h"
#include "ssm/core/parallel.h"
#include "ssm/core/tensor.h"

namespace ssm::test {

// With one thread its CPU time, which other programs on the machine do not lengthen; else real time.
inline double seconds_now() {
  timespec now{};
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Bytes read and written a second by a parallel copy that reads and writes `bytes` in all.
inline double copy_bandwidth(int64_t bytes) {
  const int64_t half = std::max<int64_t>(64, bytes / 2);
  const Tensor from = Tensor::zeros({half}, DType::u8), to = Tensor::zeros({half}, DType::u8);
  double best = 0;
  for (int trial = 0; trial < 5; ++trial) {
    const int64_t times = 1 + (int64_t{8} << 20) / half;
    const double start = seconds_now();
    for (int64_t i = 0; i < times; ++i) {
      parallel_for(half, 65536, [&](int64_t begin, int64_t end) {
        std::memcpy(to.raw() + begin, from.raw() + begin, static_cast<size_t>(end - begin));
      });
      benchmark::ClobberMemory();
    }
    const double seconds = seconds_now() - start;
    best = std::max(best, 2.0 * static_cast<double>(half * times) / seconds);
  }
  return best;
}

// Times op(), which reads and writes `bytes`.
template <class Op>
void bench_bytes(benchmark::State& state, int64_t bytes, const Op& op) {
  op();
  const double start = seconds_now();
  for (auto _ : state) op();
  const double seconds = seconds_now() - start;
  const double per_second = static_cast<double>(bytes * state.iterations()) / seconds;
  state.counters["GB/s"] = per_second * 1e-9;
  state.counters["of_copy"] = per_second / copy_bandwidth(bytes);
}

// The seconds of all iterations of op(), each with its memory from one arena, as a step of the runtime has
// it.
template <class Op>
double seconds_in_arena(benchmark::State& state, const Op& op) {
  Arena arena;
  double seconds = 0;
  for (auto _ : state) {
    const double start = seconds_now();
    const ArenaScope scope(&arena);
    benchmark::DoNotOptimize(op().raw());
    seconds += seconds_now() - start;
  }
  return seconds;
}

}  // namespace ssm::test
