// Products with packed weights on the CPU: what the kernels of linear_packed_cpu.cpp share.
//
// Weights are read as they lie in the mapped file, which is the only copy. K is cut into runs of 32, eight of
// which are a chunk; the last chunk of a row is filled up with zeros. Activations are rounded to 16-bit
// integers with a step a run, so that a run's dot product is exact in integers, whichever instructions add it
// up:
//
//   x[k] ~ step[r] q[k], step[r] = max |x[k]| / 32767 over run r    (within 2^-16 of the run's largest)
//   y    = sum_r scale[r] (step[r] sum_k code[k] q[k]) + low[r] (step[r] sum_k q[k])
//
// In f32 an output is eight partial sums, run r in sum r mod 8, each in order, with fused multiply-adds where
// the target has them; then neighbours are added, three times. Few rows and many take different kernels and
// give the same bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "ssm/quant/quantized_tensor.h"

namespace ssm::cpu {

inline constexpr int64_t kRun = 32;
inline constexpr int64_t kChunkRuns = 8;
inline constexpr int64_t kChunk = kRun * kChunkRuns;

// Where a chunk holds the codes and the scale of each of its runs (q types of 256: of the block).
struct PackedLayout {
  int64_t K = 0, chunks = 0, runs = 0;
  int64_t row_bytes = 0, chunk_bytes = 0;
  std::array<int32_t, kChunkRuns> codes{}, scales{};
};
PackedLayout packed_layout(const QuantFormat& format, int64_t K);

// The last chunk of a row that ends inside it, filled up with zeros. `row` holds row_bytes; `to` takes
// chunk_bytes.
void copy_last_chunk(const QuantFormat& format, const PackedLayout& layout, const std::byte* row,
                     std::byte* to);

}  // namespace ssm::cpu
