#include "ssm/ops/linear/linear_packed.h"

#include <algorithm>
#include <cstring>

namespace ssm::cpu {
namespace {

struct Group {
  int64_t weights, header;  // bytes before the codes
};

Group group_of(const QuantFormat& format) {
  switch (format.type) {
    case QuantType::q4_1:
      return {32, 4};
    case QuantType::q5_0:
      return {32, 6};
    case QuantType::q5_1:
      return {32, 8};
    case QuantType::int4:
      return {format.group, 4};
    default:
      return {format.group, 2};
  }
}

}  // namespace

PackedLayout packed_layout(const QuantFormat& format, int64_t K) {
  PackedLayout p{.K = K,
                 .chunks = (K + kChunk - 1) / kChunk,
                 .runs = (K + kRun - 1) / kRun,
                 .row_bytes = row_bytes(format, K),
                 .chunk_bytes = row_bytes(format, kChunk)};
  const Group g = group_of(format);
  if (g.weights >= kChunk) return p;
  const int64_t group_bytes = p.chunk_bytes / (kChunk / g.weights);
  const int64_t run_bytes = (group_bytes - g.header) / (g.weights / kRun);
  for (int64_t j = 0; j < kChunkRuns; ++j) {
    const int64_t at = j * kRun / g.weights * group_bytes, run = j * kRun % g.weights / kRun;
    p.scales[static_cast<size_t>(j)] = static_cast<int32_t>(at);
    p.codes[static_cast<size_t>(j)] = static_cast<int32_t>(at + g.header + run * run_bytes);
  }
  return p;
}

void copy_last_chunk(const QuantFormat& format, const PackedLayout& layout, const std::byte* row,
                     std::byte* to) {
  const int64_t before = layout.K / kChunk * layout.chunk_bytes, bytes = layout.row_bytes - before;
  std::memcpy(to, row + before, static_cast<size_t>(bytes));
  std::memset(to + bytes, 0, static_cast<size_t>(layout.chunk_bytes - bytes));
  const int64_t n = layout.K % kRun;
  if (format.type != QuantType::int4 || n == 0) return;
  // A run of n codes has its high halves ceil(n / 2) codes on, a whole one 16.
  const int64_t half = (n + 1) / 2;
  std::byte* const run = to + layout.codes[static_cast<size_t>(layout.K % kChunk / kRun)];
  std::array<std::byte, kRun> codes{};
  for (int64_t j = 0; j < n; ++j) {
    const auto at = static_cast<size_t>(j);
    codes[at] = j < half ? run[j] & std::byte{15} : run[j - half] >> 4;
  }
  for (size_t j = 0; j < 16; ++j) run[j] = codes[j] | codes[j + 16] << 4;
}

}  // namespace ssm::cpu
