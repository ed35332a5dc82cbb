// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a counter-based
// generator, so a value depends on (seed, stream, index) alone and never on the thread that drew it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace ssm {

std::array<uint32_t, 4> philox4x32(uint64_t seed, uint64_t stream, uint64_t index);

uint64_t stream_of(std::string_view name);  // a stream of its own for each name: FNV-1a

class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  uint32_t next_u32();
  float uniform();           // [0, 1), 24 bits
  float normal();            // mean 0, variance 1 (Box-Muller)
  int64_t below(int64_t n);  // [0, n), n > 0

 private:
  uint64_t seed_, stream_;
  uint64_t index_ = 0;
  std::array<uint32_t, 4> block_{};
  int left_ = 0;
};

}  // namespace ssm
