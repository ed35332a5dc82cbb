#include "ssm/quant/card_layout.h"

#include <array>
#include <cstring>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/quant/blocks.h"

namespace ssm {
namespace {

using Bytes = const uint8_t*;

// A row taken apart: a code a weight, `bytes` of a scale a group as they lie on the card, d and dmin a block.
struct Parts {
  std::vector<int8_t> codes;
  std::vector<uint8_t> scales, d;
};

void put(std::vector<uint8_t>& to, int64_t at, Bytes from, int64_t n) {
  std::memcpy(to.data() + at, from, static_cast<size_t>(n));
}

int8_t code_of(int value) { return static_cast<int8_t>(value); }

// The types of 32 weights a block: f16 scale, f16 low where there is one, four bytes of fifth bits where
// there are, codes.
void split_32(QuantType type, Bytes block, int64_t index, Parts& to) {
  const bool has_low = type == QuantType::q4_1 || type == QuantType::q5_1;
  const bool five = type == QuantType::q5_0 || type == QuantType::q5_1;
  const int head = has_low ? 4 : 2;
  put(to.scales, index * head, block, head);
  int8_t* const codes = to.codes.data() + index * 32;
  if (type == QuantType::q8_0) {
    std::memcpy(codes, block + 2, 32);
    return;
  }
  const Bytes low_bits = block + head + (five ? 4 : 0);
  for (int j = 0; j < 32; ++j) {
    int code = j < 16 ? low_bits[j] & 15 : low_bits[j - 16] >> 4;
    if (five) code |= (block[head + j / 8] >> (j % 8) & 1) << 4;
    if (type == QuantType::q4_0) code -= 8;
    if (type == QuantType::q5_0) code -= 16;
    codes[j] = code_of(code);
  }
}

// The types of 256 weights a block, as dequantize.cpp reads them.
void split_256(QuantType type, Bytes block, int64_t index, Parts& to) {
  const int group = type == QuantType::q4_k || type == QuantType::q5_k ? 32 : 16, groups = 256 / group;
  uint8_t* const d = to.d.data() + index * 4;
  uint8_t* const scales = to.scales.data() + index * groups * 2;
  int8_t* const codes = to.codes.data() + index * 256;
  const auto head = [&](Bytes at, int bytes) { std::memcpy(d, at, static_cast<size_t>(bytes)); };
  const auto set = [&](int g, int scale, int low) {
    scales[2 * g] = static_cast<uint8_t>(scale);
    scales[2 * g + 1] = static_cast<uint8_t>(low);
  };
  if (type == QuantType::q4_k || type == QuantType::q5_k) {
    head(block, 4);
    const Bytes low_bits = block + (type == QuantType::q4_k ? 16 : 48);
    for (int r = 0; r < 8; ++r) {
      const KScale k = k_scale(block + 4, r);
      set(r, k.scale, k.low);
      for (int j = 0; j < 32; ++j) {
        int code = low_bits[r / 2 * 32 + j] >> (r % 2 * 4) & 15;
        if (type == QuantType::q5_k) code |= (block[16 + j] >> r & 1) << 4;
        codes[r * 32 + j] = code_of(code);
      }
    }
    return;
  }
  if (type == QuantType::q2_k) head(block + 80, 4);
  if (type == QuantType::q3_k) head(block + 108, 2);
  if (type == QuantType::q6_k) head(block + 208, 2);
  for (int g = 0; g < 16; ++g) {
    const int shift = g / 2 % 4 * 2;
    if (type == QuantType::q2_k) {
      set(g, block[g] & 15, block[g] >> 4);
    } else if (type == QuantType::q3_k) {
      const Bytes packed = block + 96;
      const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4,
                high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
      set(g, (low | high << 4) - 32, 0);
    } else {
      set(g, block[192 + g], 0);
    }
    for (int j = 0; j < 16; ++j) {
      int code = 0;
      if (type == QuantType::q2_k) {
        code = block[16 + g / 8 * 32 + g % 2 * 16 + j] >> shift & 3;
      } else if (type == QuantType::q3_k) {
        code = (block[32 + g / 8 * 32 + g % 2 * 16 + j] >> shift & 3) | (block[g % 2 * 16 + j] >> (g / 2) & 1)
                                                                            << 2;
        code -= 4;
      } else {
        code = (block[g / 8 * 64 + g % 4 * 16 + j] >> (g / 4 % 2 * 4) & 15) |
               (block[128 + g / 8 * 32 + g % 2 * 16 + j] >> shift & 3) << 4;
        code -= 32;
      }
      codes[g * 16 + j] = code_of(code);
    }
  }
}

void split_integers(const QuantFormat& format, Bytes row, int64_t K, Parts& to) {
  const bool four = format.type == QuantType::int4;
  const int64_t head = four ? 4 : 2;
  for (int64_t k = 0; k < K; k += format.group) {
    const int64_t end = std::min(k + format.group, K);
    put(to.scales, k / format.group * head, row, head);
    row += head;
    if (!four) {
      std::memcpy(to.codes.data() + k, row, static_cast<size_t>(end - k));
      row += end - k;
      continue;
    }
    for (int64_t run = k; run < end; run += 32) {
      const int64_t n = std::min<int64_t>(32, end - run), half = (n + 1) / 2;
      int8_t* const codes = to.codes.data() + run;
      for (int64_t j = 0; j < half; ++j) codes[j] = code_of(row[j] & 15);
      for (int64_t j = half; j < n; ++j) codes[j] = code_of(row[j - half] >> 4);
      row += half;
    }
  }
}

void split_row(const QuantFormat& format, Bytes row, int64_t K, Parts& to) {
  if (format.type == QuantType::int8 || format.type == QuantType::int4)
    return split_integers(format, row, K, to);
  const int64_t bytes = row_bytes(format, format.group);
  for (int64_t i = 0; i < K / format.group; ++i, row += bytes)
    (format.group == 32 ? split_32 : split_256)(format.type, row, i, to);
}

// Row n of a tile: `codes`, `scales` and `d` are the tile's.
void lay_row(const CardLayout& layout, const Parts& parts, int64_t K, int n, uint8_t* codes, uint8_t* scales,
             uint8_t* d) {
  const CardFormat& f = layout.format;
  const int zero = f.zero();
  // Places repeat from load to load.
  std::array<CardPlace, 64> places{};
  for (int k = 0; k < f.load_weights(); ++k) places[static_cast<size_t>(k)] = card_place(f, n, k);
  const int8_t* from = parts.codes.data();
  for (int64_t left = K; left > 0; left -= f.load_weights(), from += f.load_weights()) {
    const auto count = static_cast<size_t>(std::min<int64_t>(f.load_weights(), left));
    if (f.bits == 4) {
      for (size_t k = 0; k < count; ++k)
        codes[places[k].byte] |= static_cast<uint8_t>((from[k] + zero) << places[k].shift);
    } else {
      for (size_t k = 0; k < count; ++k) codes[places[k].byte] = static_cast<uint8_t>(from[k]);
    }
    codes += CardLayout::kLoad;
  }
  const int size = f.scale_bytes(), pair = n % 8, row = n / 8;
  const int64_t groups = (K + f.group - 1) / f.group, of_chunk = CardLayout::kChunk / f.group;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t at = (group / of_chunk * CardLayout::kPairs + pair) * f.pair_bytes();
    std::memcpy(scales + at + (group % of_chunk * 2 + row) * size, parts.scales.data() + group * size,
                static_cast<size_t>(size));
  }
  if (!f.is_k()) return;
  for (int64_t chunk = 0; chunk < layout.chunks; ++chunk)
    std::memcpy(d + (chunk * CardLayout::kPairs + pair) * 8 + row * 4, parts.d.data() + chunk * 4, 4);
}

}  // namespace

CardFormat card_format(const QuantFormat& format) {
  const int group = static_cast<int>(format.group);
  switch (format.type) {
    case QuantType::q4_0:
      return {4, CardScales::f16, 32};
    case QuantType::q8_0:
    case QuantType::q5_0:
      return {8, CardScales::f16, 32};
    case QuantType::q4_1:
      return {4, CardScales::f16_low, 32};
    case QuantType::q5_1:
      return {8, CardScales::f16_low, 32};
    case QuantType::q2_k:
      return {4, CardScales::k_low, 16};
    case QuantType::q3_k:
      return {4, CardScales::k, 16};
    case QuantType::q4_k:
      return {4, CardScales::k_low, 32};
    case QuantType::q5_k:
      return {8, CardScales::k_low, 32};
    case QuantType::q6_k:
      return {8, CardScales::k, 16};
    case QuantType::int8:
      return {8, CardScales::f16, group};
    case QuantType::int4:
      return {4, CardScales::f16_low, group};
  }
  fail("{} has no layout on a card", name_of(format));
}

CardLayout card_layout(const QuantFormat& format, const Shape& shape) {
  const CardFormat f = card_format(format);
  const auto parts = [](int64_t n, int64_t part) { return (n + part - 1) / part; };
  CardLayout layout{.format = f,
                    .tiles = parts(shape[0], CardLayout::kTile),
                    .loads = parts(shape[1], f.load_weights()),
                    .chunks = parts(shape[1], CardLayout::kChunk)};
  const int64_t pairs = layout.tiles * layout.chunks * CardLayout::kPairs;
  layout.scales_at = layout.tiles * layout.loads * CardLayout::kLoad;
  layout.d_at = layout.scales_at + pairs * f.pair_bytes();
  layout.bytes = layout.d_at + (f.is_k() ? pairs * 8 : 0);
  return layout;
}

Tensor repack_for_card(const QuantizedTensor& packed) {
  const int64_t N = packed.shape[0], K = packed.shape[1], stride = row_bytes(packed.format, K);
  const CardLayout layout = card_layout(packed.format, packed.shape);
  const CardFormat& f = layout.format;
  const int64_t codes = layout.loads * CardLayout::kLoad,
                scales = layout.chunks * CardLayout::kPairs * f.pair_bytes(),
                d = f.is_k() ? layout.chunks * CardLayout::kPairs * 8 : 0;
  const Tensor bytes = Tensor::zeros({layout.bytes}, DType::u8);
  uint8_t* const to = bytes.data<uint8_t>();
  parallel_for(layout.tiles, std::max<int64_t>(1, 4096 / K), [&](int64_t begin, int64_t end) {
    Parts parts;
    parts.codes.resize(static_cast<size_t>(K));
    parts.scales.resize(static_cast<size_t>((K + f.group - 1) / f.group * f.scale_bytes()));
    parts.d.resize(f.is_k() ? static_cast<size_t>(layout.chunks * 4) : 0);
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t n = tile * CardLayout::kTile; n < std::min((tile + 1) * CardLayout::kTile, N); ++n) {
        split_row(packed.format, reinterpret_cast<Bytes>(packed.bytes.raw()) + n * stride, K, parts);
        lay_row(layout, parts, K, static_cast<int>(n % CardLayout::kTile), to + tile * codes,
                to + layout.scales_at + tile * scales, to + layout.d_at + tile * d);
      }
    }
  });
  return bytes;
}

QuantizedTensor to_card(const QuantizedTensor& packed, Device device) {
  SSM_CHECK(!packed.device().is_cuda() && device.is_cuda(), "a packed matrix goes from the host to a card");
  return {packed.format, packed.shape, repack_for_card(packed).to(device)};
}

}  // namespace ssm
