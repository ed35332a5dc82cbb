#include "ssm/ops/linear/linear_packed.h"

#include <array>
#include <cstring>

#include "ssm/ops/linear/linear_cpu.h"

namespace ssm::cpu {

PackedLayout packed_layout(const QuantFormat& format, int64_t K) {
  return {.K = K,
          .chunks = (K + kChunk - 1) / kChunk,
          .runs = (K + kRun - 1) / kRun,
          .row_bytes = row_bytes(format, K),
          .chunk_bytes = row_bytes(format, kChunk)};
}

PackedKind packed_kind(QuantType type) {
  switch (type) {
    case QuantType::q8_0:
    case QuantType::int8:
      return PackedKind::bytes;
    case QuantType::q4_0:
    case QuantType::q4_1:
    case QuantType::q5_0:
    case QuantType::q5_1:
    case QuantType::int4:
      return PackedKind::nibbles;
    default:
      return PackedKind::superblocks;
  }
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
  std::byte* const run = to + bytes - half;
  std::array<std::byte, kRun> codes{};
  for (int64_t j = 0; j < n; ++j) {
    codes[static_cast<size_t>(j)] = j < half ? run[j] & std::byte{15} : run[j - half] >> 4;
  }
  for (size_t j = 0; j < 16; ++j) run[j] = codes[j] | codes[j + 16] << 4;
}

void linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& /*rounded_bias*/,
            DType compute, const Tensor& y) {
  if (y.numel() == 0) return;
  const Tensor rounded = compute == DType::f32 ? x : x.to(compute).to(DType::f32);
  const PackedProduct p{.w = &w,
                        .layout = packed_layout(w.format, w.shape[1]),
                        .x = rounded.data<float>(),
                        .x_stride = rounded.stride(0),
                        .T = y.size(0),
                        .N = y.size(1),
                        .bias = bias.defined() ? bias.data<float>() : nullptr,
                        .y = y.data<float>()};
  if (p.T > kFewPackedRows) return linear_packed_many(p);
  switch (packed_kind(w.format.type)) {
    case PackedKind::bytes:
      return few_rows_of_bytes(p);
    case PackedKind::nibbles:
      return few_rows_of_nibbles(p);
    case PackedKind::superblocks:
      return few_rows_of_superblocks(p);
  }
}

}  // namespace ssm::cpu
