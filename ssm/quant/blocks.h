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

inline void store_f16(uint8_t* at, float value) {
  const Float16 half = from_float<Float16>(value);
  std::memcpy(at, &half.bits, 2);
}

// The scale and low of run j (32 weights) of a q4_k or q5_k block: eight pairs of six bits in twelve bytes.
struct KScale {
  int scale, low;
};
inline KScale k_scale(const uint8_t* packed, int j) {
  if (j < 4) return {packed[j] & 63, packed[j + 4] & 63};
  return {(packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4};
}

// Runs in order: the later ones fill up what the earlier ones wrote.
inline void store_k_scale(uint8_t* packed, int j, KScale k) {
  if (j < 4) {
    packed[j] = static_cast<uint8_t>(k.scale);
    packed[j + 4] = static_cast<uint8_t>(k.low);
    return;
  }
  packed[j + 4] = static_cast<uint8_t>((k.scale & 15) | (k.low & 15) << 4);
  packed[j - 4] = static_cast<uint8_t>(packed[j - 4] | (k.scale >> 4) << 6);
  packed[j] = static_cast<uint8_t>(packed[j] | (k.low >> 4) << 6);
}

}  // namespace ssm
