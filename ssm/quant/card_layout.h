// How a packed matrix lies on a card: repacked from format.h's rows when it is placed there, so that a warp
// reads 16 neighbouring bytes a lane, in the order in which its matrix instructions take them. Codes are kept
// as integers of 4 or 8 bits (those of 5 and 6 bits take 8, those of 2 and 3 take 4), scales as they were:
// every weight keeps dequantize_row's value to the bit. Nothing turns it back: who writes files reads a
// model's file, never a card.
//
// Rows come in tiles of 16, filled up with zeros. Three arrays, one behind the other:
//
//   codes   [tiles][loads][32 lanes][16 bytes]   a load: 16 rows x 64 (4 bits) or 32 (8 bits) weights
//   scales  [tiles][chunks][8 pairs][...]        a chunk: 256 weights of a row; a pair: rows g and g + 8
//   d       [tiles][chunks][8 pairs][8 bytes]    of K types alone: f16 d and dmin of both rows
//
// A pair's scales are, for each of the chunk's groups in order, what both rows have: an f16 scale, with a low
// an f16 low behind it, or of K types an i8 scale and a u8 low.
#pragma once

#include "ssm/quant/quantized_tensor.h"

#ifdef __CUDACC__
#define SSM_HOST_DEVICE __host__ __device__
#else
#define SSM_HOST_DEVICE
#endif

namespace ssm {

// With s and m the scale and low of a group and c the code:
enum class CardScales : uint8_t {
  f16,      // s c
  f16_low,  // m + s c
  k,        // d s c
  k_low     // d s c - dmin m
};

// What the kernels are made for: a code's bits, its scales, and how many weights have one.
struct CardFormat {
  int bits = 4;
  CardScales scales = CardScales::f16;
  int group = 32;

  bool operator==(const CardFormat&) const = default;
  SSM_HOST_DEVICE constexpr bool has_low() const {
    return scales == CardScales::f16_low || scales == CardScales::k_low;
  }
  SSM_HOST_DEVICE constexpr bool is_k() const {
    return scales == CardScales::k || scales == CardScales::k_low;
  }
  // What a code of 4 bits is stored above: one without a low is signed.
  SSM_HOST_DEVICE constexpr int zero() const { return bits == 4 && !has_low() ? 8 : 0; }
  SSM_HOST_DEVICE constexpr int load_weights() const { return 256 / bits; }  // of a row in a load
  SSM_HOST_DEVICE constexpr int chunk_loads() const { return bits; }         // 256 / load_weights()
  SSM_HOST_DEVICE constexpr int scale_bytes() const {                        // of a row's group
    return scales == CardScales::f16_low ? 4 : 2;
  }
  SSM_HOST_DEVICE constexpr int pair_bytes() const { return 256 / group * 2 * scale_bytes(); }
};
CardFormat card_format(const QuantFormat& format);

struct CardLayout {
  static constexpr int kTile = 16, kChunk = 256, kLoad = 512, kPairs = 8;
  CardFormat format;
  int64_t tiles = 0, loads = 0, chunks = 0;
  int64_t scales_at = 0, d_at = 0, bytes = 0;  // from the first byte
};
CardLayout card_layout(const QuantFormat& format, const Shape& shape);

// The matrix on `device`, a card: its bytes are u8 [card_layout(..).bytes].
QuantizedTensor to_card(const QuantizedTensor& packed, Device device);
// The same bytes on the host.
Tensor repack_for_card(const QuantizedTensor& packed);

// Where a code stands: weight k of row n of a tile. Along K each lane of a load's four columns of lanes has
// four neighbours of 16 weights, where a group is as short, else eight of 32.
struct CardPlace {
  int64_t load;
  int byte, shift;  // in the load
};
SSM_HOST_DEVICE constexpr CardPlace card_place(const CardFormat& f, int n, int64_t k) {
  const int width = f.load_weights(), in_load = static_cast<int>(k % width);
  const int column = f.group == 16 ? in_load % 16 / 4 : in_load % 32 / 8;  // of lanes
  const int step = f.group == 16 ? in_load / 16 : in_load / 32 * 2 + in_load % 8 / 4;
  const int half = n / 8, j = in_load % 4 / 2, e = in_load % 2, lane = n % 8 * 4 + column;
  const int nibble = half + 2 * j + 4 * e;
  return {k / width, lane * 16 + (f.bits == 4 ? step * 4 + nibble / 2 : (2 * step + j) * 4 + half + 2 * e),
          f.bits == 4 ? nibble % 2 * 4 : 0};
}

}  // namespace ssm
