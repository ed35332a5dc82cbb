// Products with packed weights on the CPU: what the kernels of linear_packed_*_cpu.cpp share.
//
// Weights are read as they lie in the mapped file, which is the only copy. K is cut into runs of 32, eight of
// which are a chunk; the last chunk of a row is filled up with zeros. Activations are rounded to 16-bit
// integers with a step a run, so that a run's dot product is exact in integers, whichever instructions add it
// up:
//
//   x[k] ~ step[r] q[k], step[r] = max |x[k]| / 32767 over run r    (within 2^-16 of the run's largest)
//   y    = sum_r scale[r] (step[r] sum_k code[k] q[k]) + low[r] (step[r] sum_k q[k])
//
// In f32 an output is two partial sums, of the first four and of the last four runs of every chunk, each in
// order, with fused multiply-adds where the target has them. Few rows and many take different kernels and
// give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ssm/quant/quantized_tensor.h"

namespace ssm::cpu {

inline constexpr int64_t kRun = 32;
inline constexpr int64_t kChunkRuns = 8;
inline constexpr int64_t kChunk = kRun * kChunkRuns;

struct PackedLayout {
  int64_t K = 0, chunks = 0, runs = 0;
  int64_t row_bytes = 0, chunk_bytes = 0;
};
PackedLayout packed_layout(const QuantFormat& format, int64_t K);

struct PackedProduct {  // y [T, N] = x [T, K] w^T + bias
  const QuantizedTensor* w = nullptr;
  PackedLayout layout{};
  const float* x = nullptr;
  int64_t x_stride = 0, T = 0, N = 0;
  const float* bias = nullptr;  // or null
  float* y = nullptr;
};

enum class PackedKind { bytes, nibbles, superblocks };  // of 256 weights
PackedKind packed_kind(QuantType type);

inline constexpr int kFewPackedRows = 8;  // up to here reading W costs more than the products
void few_rows_of_bytes(const PackedProduct& p);
void few_rows_of_nibbles(const PackedProduct& p);
void few_rows_of_superblocks(const PackedProduct& p);
void linear_packed_many(const PackedProduct& p);

// The last chunk of a row that ends inside it, filled up with zeros. `row` holds row_bytes; `to` takes
// chunk_bytes.
void copy_last_chunk(const QuantFormat& format, const PackedLayout& layout, const std::byte* row,
                     std::byte* to);

}  // namespace ssm::cpu
