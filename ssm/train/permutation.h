// A shuffle of [0, n). Up to 65,536 it is stored (Fisher and Yates); larger ones are computed: a Feistel
// network of six rounds over the next power of four (Luby and Rackoff, "How to construct pseudorandom
// permutations from pseudorandom functions", 1988), walked until it lands below n (Black and Rogaway,
// "Ciphers with arbitrary finite domains", 2002).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace ssm::train {

class Permutation {
 public:
  Permutation() = default;  // of nothing
  // The same for the same n, seed and stream on every machine.
  Permutation(int64_t n, uint64_t seed, uint64_t stream);
  int64_t operator()(int64_t i) const;  // i in [0, n)

 private:
  static constexpr int kRounds = 6;
  static constexpr int64_t kStored = 65536;  // where the network is too small to be fair

  uint64_t n_ = 0;
  std::vector<uint32_t> stored_;
  int half_bits_ = 1;
  std::array<uint64_t, kRounds> keys_{};
};

}  // namespace ssm::train
