#include "ssm/quant/dequantize.h"

#include <algorithm>
#include <array>

#include "ssm/core/parallel.h"
#include "ssm/quant/blocks.h"

namespace ssm {
namespace {

using Bytes = const uint8_t*;

int signed_byte(uint8_t byte) { return static_cast<int8_t>(byte); }

// Two runs of `half` codes that share bytes: low halves, then high halves.
template <class F>
void nibbles(Bytes codes, int half, float* out, F&& weight) {
  for (int j = 0; j < half; ++j) {
    out[j] = weight(codes[j] & 15, j);
    out[j + half] = weight(codes[j] >> 4, j + half);
  }
}

void q8_0(Bytes block, float* out) {
  const float d = load_f16(block);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(signed_byte(block[2 + j])) * d;
}

void q4_0(Bytes block, float* out) {
  const float d = load_f16(block);
  nibbles(block + 2, 16, out, [&](int code, int) { return static_cast<float>(code - 8) * d; });
}

void q4_1(Bytes block, float* out) {
  const float d = load_f16(block), low = load_f16(block + 2);
  nibbles(block + 4, 16, out, [&](int code, int) { return static_cast<float>(code) * d + low; });
}

int fifth_bit(Bytes bits, int j) { return (bits[j / 8] >> (j % 8) & 1) << 4; }

void q5_0(Bytes block, float* out) {
  const float d = load_f16(block);
  nibbles(block + 6, 16, out,
          [&](int code, int j) { return static_cast<float>((code | fifth_bit(block + 2, j)) - 16) * d; });
}

void q5_1(Bytes block, float* out) {
  const float d = load_f16(block), low = load_f16(block + 2);
  nibbles(block + 8, 16, out,
          [&](int code, int j) { return static_cast<float>(code | fifth_bit(block + 4, j)) * d + low; });
}

// Blocks of 256: sixteen groups of 16 weights or eight runs of 32. In two bits a code, the runs r, r + 1, r +
// 2 and r + 3 of each half share 32 bytes.
void q2_k(Bytes block, float* out) {
  const float d = load_f16(block + 80), dmin = load_f16(block + 82);
  for (int g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(block[g] & 15), low = dmin * static_cast<float>(block[g] >> 4);
    const Bytes codes = block + 16 + g / 8 * 32 + g % 2 * 16;
    const int shift = g / 2 % 4 * 2;
    for (int j = 0; j < 16; ++j) out[g * 16 + j] = scale * static_cast<float>(codes[j] >> shift & 3) - low;
  }
}

void q3_k(Bytes block, float* out) {
  const Bytes scales = block + 96;
  const float d = load_f16(block + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4, high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const Bytes third_bits = block + g % 2 * 16, codes = block + 32 + g / 8 * 32 + g % 2 * 16;
    const int shift = g / 2 % 4 * 2;
    for (int j = 0; j < 16; ++j) {
      const int code = (codes[j] >> shift & 3) | (third_bits[j] >> (g / 2) & 1) << 2;
      out[g * 16 + j] = scale * static_cast<float>(code - 4);
    }
  }
}

void q4_k(Bytes block, float* out) {
  const float d = load_f16(block), dmin = load_f16(block + 2);
  for (int r = 0; r < 8; ++r) {
    const KScale k = k_scale(block + 4, r);
    const float scale = d * static_cast<float>(k.scale), low = dmin * static_cast<float>(k.low);
    const Bytes codes = block + 16 + r / 2 * 32;
    const int shift = r % 2 * 4;
    for (int j = 0; j < 32; ++j) out[r * 32 + j] = scale * static_cast<float>(codes[j] >> shift & 15) - low;
  }
}

void q5_k(Bytes block, float* out) {
  const float d = load_f16(block), dmin = load_f16(block + 2);
  for (int r = 0; r < 8; ++r) {
    const KScale k = k_scale(block + 4, r);
    const float scale = d * static_cast<float>(k.scale), low = dmin * static_cast<float>(k.low);
    const Bytes fifth_bits = block + 16, codes = block + 48 + r / 2 * 32;
    const int shift = r % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int code = (codes[j] >> shift & 15) | (fifth_bits[j] >> r & 1) << 4;
      out[r * 32 + j] = scale * static_cast<float>(code) - low;
    }
  }
}

void q6_k(Bytes block, float* out) {
  const float d = load_f16(block + 208);
  for (int g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(signed_byte(block[192 + g]));
    const Bytes low = block + g / 8 * 64 + g % 4 * 16, high = block + 128 + g / 8 * 32 + g % 2 * 16;
    const int low_shift = g / 4 % 2 * 4, high_shift = g / 2 % 4 * 2;
    for (int j = 0; j < 16; ++j) {
      const int code = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
      out[g * 16 + j] = scale * static_cast<float>(code - 32);
    }
  }
}

void int8_row(Bytes row, const QuantFormat& format, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += format.group) {
    const int64_t n = std::min(format.group, K - k);
    const float scale = load_f16(row);
    for (int64_t j = 0; j < n; ++j) out[k + j] = scale * static_cast<float>(signed_byte(row[2 + j]));
    row += 2 + n;
  }
}

void int4_row(Bytes row, const QuantFormat& format, int64_t K, float* out) {
  for (int64_t k = 0; k < K; k += format.group) {
    const int64_t end = std::min(k + format.group, K);
    const float scale = load_f16(row), low = load_f16(row + 2);
    row += 4;
    for (int64_t run = k; run < end; run += 32) {
      const int64_t n = std::min<int64_t>(32, end - run), half = (n + 1) / 2;
      for (int64_t j = 0; j < n; ++j) {
        const int code = j < half ? row[j] & 15 : row[j - half] >> 4;
        out[run + j] = low + scale * static_cast<float>(code);
      }
      row += half;
    }
  }
}

using Row = void (*)(Bytes row, const QuantFormat& format, int64_t K, float* out);

template <void (*Block)(Bytes block, float* out)>
void blocks(Bytes row, const QuantFormat& format, int64_t K, float* out) {
  const int64_t bytes = row_bytes(format, format.group);
  for (int64_t k = 0; k < K; k += format.group, row += bytes) Block(row, out + k);
}

// By QuantType.
constexpr std::array<Row, 12> kRows{blocks<q8_0>, blocks<q4_0>, blocks<q4_1>, blocks<q5_0>,
                                    blocks<q5_1>, blocks<q2_k>, blocks<q3_k>, blocks<q4_k>,
                                    blocks<q5_k>, blocks<q6_k>, int8_row,     int4_row};

}  // namespace

void dequantize_row(const QuantFormat& format, const std::byte* bytes, int64_t K, float* out) {
  kRows[static_cast<size_t>(format.type)](reinterpret_cast<Bytes>(bytes), format, K, out);
}

Tensor dequantize(const QuantizedTensor& packed) {
  SSM_CHECK(!packed.device().is_cuda(), "dequantize: a packed matrix is on {}, expected on the host",
            name_of(packed.device()));
  const int64_t N = packed.shape[0], K = packed.shape[1], stride = row_bytes(packed.format, K);
  Tensor out = Tensor::empty(packed.shape);
  parallel_for(N, std::max<int64_t>(1, 16384 / K), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      dequantize_row(packed.format, packed.bytes.raw() + n * stride, K, out.data<float>() + n * K);
  });
  return out;
}

}  // namespace ssm
