// Fields that several packed formats share. Bytes are little-endian, at any alignment.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "ssm/core/dtype.h"

namespace ssm {

static_assert(std::endian::native == std::endian::little);

inline float load_f16(const uint8_t* at) {
  Float16 value;
  std::memcpy(&value.bits, at, 2);
  return to_float(value);
}

// The scale and low of run j (32 weights) of a q4_k or q5_k block: eight pairs of six bits in twelve bytes.
struct KScale {
  int scale, low;
};
inline KScale k_scale(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4};
}

}  // namespace ssm
