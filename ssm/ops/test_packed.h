// Packed matrices of random codes and scales, for tests and benches.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "ssm/core/dtype.h"
#include "ssm/core/rng.h"
#include "ssm/quant/quantized_tensor.h"

namespace ssm::test {

inline std::vector<QuantFormat> packed_formats() {
  std::vector<QuantFormat> formats;
  for (const char* type : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"}) {
    formats.push_back(*quant_format(type));
  }
  for (const int64_t group : {32, 64, 128}) {
    formats.push_back(*quant_format("int8", group));
    formats.push_back(*quant_format("int4", group));
  }
  return formats;
}

// Where the f16 numbers of a block stand.
inline std::vector<int64_t> scale_offsets(QuantType type) {
  switch (type) {
    case QuantType::q4_1:
    case QuantType::q5_1:
    case QuantType::q4_k:
    case QuantType::q5_k:
    case QuantType::int4:
      return {0, 2};
    case QuantType::q2_k:
      return {80, 82};
    case QuantType::q3_k:
      return {108};
    case QuantType::q6_k:
      return {208};
    default:
      return {0};
  }
}

inline QuantizedTensor random_packed(const QuantFormat& format, int64_t N, int64_t K, Rng& rng) {
  const int64_t stride = row_bytes(format, K);
  const Tensor bytes = Tensor::empty({N, stride}, DType::u8);
  for (uint8_t& b : bytes.values<uint8_t>()) b = static_cast<uint8_t>(rng.below(256));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t at = 0, k = 0; at < stride;
         at += row_bytes(format, std::min(K - k, format.group)), k += format.group) {
      for (const int64_t offset : scale_offsets(format.type)) {
        const Float16 half = from_float<Float16>(0.01f * rng.normal());
        std::memcpy(bytes.raw() + n * stride + at + offset, &half, sizeof(half));
      }
    }
  }
  return packed_view(format, {N, K}, bytes);
}

}  // namespace ssm::test
