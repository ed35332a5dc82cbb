#include "ssm/train/permutation.h"

#include <cstddef>
#include <numeric>
#include <utility>

#include "ssm/core/rng.h"

namespace ssm::train {
namespace {

// SplitMix64's finaliser (Steele, Lea and Flood, 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

Permutation::Permutation(int64_t n, uint64_t seed, uint64_t stream) : n_(static_cast<uint64_t>(n)) {
  if (n <= kStored) {
    stored_.resize(n_);
    std::iota(stored_.begin(), stored_.end(), 0u);
    Rng random(seed, stream);
    for (int64_t i = n - 1; i > 0; --i) {
      std::swap(stored_[static_cast<std::size_t>(i)], stored_[static_cast<std::size_t>(random.below(i + 1))]);
    }
    return;
  }
  while (half_bits_ < 32 && (uint64_t{1} << (2 * half_bits_)) < n_) ++half_bits_;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const auto words = philox4x32(seed, stream, round);
    keys_[round] = (uint64_t{words[0]} << 32) | words[1];
  }
}

int64_t Permutation::operator()(int64_t i) const {
  if (!stored_.empty()) return stored_[static_cast<std::size_t>(i)];
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  auto x = static_cast<uint64_t>(i);
  do {
    uint64_t left = x >> half_bits_, right = x & mask;
    for (const uint64_t key : keys_) {
      const uint64_t next = left ^ (mix(right + key) & mask);
      left = right;
      right = next;
    }
    x = (left << half_bits_) | right;
  } while (x >= n_);
  return static_cast<int64_t>(x);
}

}  // namespace ssm::train
