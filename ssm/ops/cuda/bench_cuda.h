// Timing of ops on a card: calls are captured in a graph, so that what is timed is the card's work and not
// the host's. Rotating over several sets of operands keeps them out of the L2 cache.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "ssm/core/graph.h"
#include "ssm/core/rng.h"
#include "ssm/core/tensor.h"

namespace ssm::test {

// Seconds a call of op(set), set = 0 .. sets - 1 in turn: the median over rounds of at least a millisecond.
inline double card_seconds(int sets, const std::function<void(int)>& op, int rounds = 15) {
  Arena arena;
  const ArenaScope scope(&arena);
  for (int i = 0; i < sets; ++i) op(i);  // fills the arena, loads the kernels
  synchronize(kCuda);
  const Graph graph([&] {
    for (int i = 0; i < sets; ++i) op(i);
  });
  const auto time = [&](int replays) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < replays; ++i) graph.replay();
    synchronize(kCuda);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return seconds.count();
  };
  time(1);
  const int replays = std::max(1, static_cast<int>(2e-3 / time(1)) + 1);
  std::vector<double> seconds;
  for (int i = 0; i < rounds; ++i) seconds.push_back(time(replays) / (replays * sets));
  std::nth_element(seconds.begin(), seconds.begin() + rounds / 2, seconds.end());
  return seconds[static_cast<size_t>(rounds / 2)];
}

// Bytes a second, read and written together, of a copy within the card's memory.
inline double card_copy_bandwidth() {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const Tensor from = Tensor::zeros({kBytes}, DType::u8, kCuda),
               to = Tensor::zeros({kBytes}, DType::u8, kCuda);
  return 2.0 * kBytes / card_seconds(1, [&](int) { copy_bytes(to.raw(), kCuda, from.raw(), kCuda, kBytes); });
}

// A tensor of a card from a block of random numbers: what a large one takes to make is mostly the card's.
inline Tensor card_random(const Shape& shape, DType dtype, float scale = 1.0f) {
  Rng rng(static_cast<uint64_t>(shape.numel()));
  Tensor block = Tensor::empty({std::min<int64_t>(shape.numel(), 999983)});
  for (float& x : block.values<float>()) x = scale * rng.normal();
  block = block.to(dtype);
  const Tensor t = Tensor::empty(shape, dtype, kCuda);
  for (size_t at = 0; at < t.bytes(); at += block.bytes())
    copy_bytes(t.raw() + at, kCuda, block.raw(), kCpu, std::min(block.bytes(), t.bytes() - at));
  return t;
}

}  // namespace ssm::test
