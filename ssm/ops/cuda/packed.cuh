// Packed matrices as kernels see them (quant/card_layout.h), a format as a type, and single weights.
#pragma once

#include "ssm/core/error.h"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/quant/card_layout.h"

namespace ssm::cuda {

struct PackedMatrix {
  const std::byte *codes, *scales, *d;
  int64_t N, K, tiles;
  int loads, chunks;  // of a tile
};

inline PackedMatrix matrix_of(const QuantizedTensor& w) {
  const CardLayout layout = card_layout(w.format, w.shape);
  SSM_CHECK(w.bytes.numel() == layout.bytes, "a packed matrix {} ({}) on a card has {} bytes, expected {}",
            w.shape, name_of(w.format), w.bytes.numel(), layout.bytes);
  const std::byte* const at = w.bytes.raw();
  return {.codes = at,
          .scales = at + layout.scales_at,
          .d = at + layout.d_at,
          .N = w.shape[0],
          .K = w.shape[1],
          .tiles = layout.tiles,
          .loads = static_cast<int>(layout.loads),
          .chunks = static_cast<int>(layout.chunks)};
}

template <int Bits, CardScales Scales, int Group>
struct PackedAs {
  static constexpr CardFormat kFormat{Bits, Scales, Group};
  static constexpr int kBits = Bits, kGroup = Group, kZero = kFormat.zero(), kLoads = kFormat.chunk_loads(),
                       kLoadWeights = kFormat.load_weights(), kPairBytes = kFormat.pair_bytes();
  static constexpr bool kHasLow = kFormat.has_low(), kIsK = kFormat.is_k();
};

// Those that decoding is made fast for, also of several rows and in fused steps:
template <class F>
bool dispatch_common_format(const CardFormat& format, F&& f) {
  const auto tried = [&](auto as) {
    if (as.kFormat == format) f(as);
    return as.kFormat == format;
  };
  return tried(PackedAs<4, CardScales::f16_low, 128>{}) || tried(PackedAs<4, CardScales::f16_low, 64>{}) ||
         tried(PackedAs<4, CardScales::f16_low, 32>{}) || tried(PackedAs<4, CardScales::f16, 32>{}) ||
         tried(PackedAs<4, CardScales::k_low, 32>{}) || tried(PackedAs<8, CardScales::f16, 128>{}) ||
         tried(PackedAs<8, CardScales::f16, 64>{}) || tried(PackedAs<8, CardScales::f16, 32>{});
}
// and the others.
template <class F>
bool dispatch_other_format(const CardFormat& format, F&& f) {
  const auto tried = [&](auto as) {
    if (as.kFormat == format) f(as);
    return as.kFormat == format;
  };
  return tried(PackedAs<4, CardScales::k_low, 16>{}) || tried(PackedAs<4, CardScales::k, 16>{}) ||
         tried(PackedAs<8, CardScales::f16_low, 32>{}) || tried(PackedAs<8, CardScales::k_low, 32>{}) ||
         tried(PackedAs<8, CardScales::k, 16>{});
}

// Scale and low of a group from what lies there; dequantize_row's values to the bit.
struct GroupScale {
  float scale, low;
};
__device__ __forceinline__ float half_bits(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ GroupScale f16_scale(uint32_t word, bool has_low) {
  return {half_bits(word & 0xffffu), has_low ? half_bits(word >> 16) : 0.0f};
}
// `scale` holds an i8 scale and a u8 low, `d` f16 d and dmin.
__device__ __forceinline__ GroupScale k_group_scale(uint32_t scale, uint32_t d) {
  const auto s = static_cast<float>(static_cast<int8_t>(scale & 0xffu));
  const auto m = static_cast<float>(scale >> 8 & 0xffu);
  return {__fmul_rn(half_bits(d & 0xffffu), s), -__fmul_rn(half_bits(d >> 16), m)};
}
__device__ __forceinline__ float packed_value(GroupScale s, int code, bool has_low) {
  const float product = __fmul_rn(s.scale, static_cast<float>(code));
  return has_low ? __fadd_rn(product, s.low) : product;
}

// Weight k of row n, whatever the format.
__device__ __forceinline__ float packed_weight(const PackedMatrix& w, const CardFormat& f, int64_t n,
                                               int64_t k) {
  const int64_t tile = n / CardLayout::kTile, at = (tile * w.chunks + k / 256) * CardLayout::kPairs + n % 8;
  const int row = static_cast<int>(n % 16 / 8), group = static_cast<int>(k % 256) / f.group;
  const CardPlace place = card_place(f, static_cast<int>(n % 16), k);
  const auto byte =
      static_cast<uint8_t>(w.codes[(tile * w.loads + place.load) * CardLayout::kLoad + place.byte]);
  const int code =
      f.bits == 4 ? (byte >> place.shift & 15) - f.zero() : static_cast<int>(static_cast<int8_t>(byte));
  const std::byte* const scale = w.scales + at * f.pair_bytes() + (group * 2 + row) * f.scale_bytes();
  uint32_t word = *reinterpret_cast<const uint16_t*>(scale);
  if (f.scales == CardScales::f16_low) word |= uint32_t{*reinterpret_cast<const uint16_t*>(scale + 2)} << 16;
  if (!f.is_k()) return packed_value(f16_scale(word, f.has_low()), code, f.has_low());
  const uint32_t d = *reinterpret_cast<const uint32_t*>(w.d + at * 8 + row * 4);
  return packed_value(k_group_scale(word, d), code, f.has_low());
}

}  // namespace ssm::cuda
