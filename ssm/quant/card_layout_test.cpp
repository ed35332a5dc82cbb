// Every weight keeps its value on its way to a card, to the bit, read back from there by the layout's words.
#include "ssm/quant/card_layout.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ssm/core/rng.h"
#include "ssm/quant/blocks.h"
#include "ssm/quant/dequantize.h"

namespace ssm {
namespace {

std::vector<QuantFormat> all_formats() {
  std::vector<QuantFormat> formats;
  for (const char* type : {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"})
    formats.push_back(*quant_format(type));
  for (const int64_t group : {32, 64, 128}) {
    formats.push_back(*quant_format("int8", group));
    formats.push_back(*quant_format("int4", group));
  }
  return formats;
}

// Random bytes, but for an exponent of all ones in what may be a scale.
QuantizedTensor random_bytes(const QuantFormat& format, int64_t N, int64_t K, Rng& rng) {
  const Tensor bytes = Tensor::empty({N, row_bytes(format, K)}, DType::u8);
  for (uint8_t& byte : bytes.values<uint8_t>()) byte = static_cast<uint8_t>(rng.below(256)) & 0xbf;
  return packed_view(format, {N, K}, bytes);
}

float weight_at(const CardLayout& layout, const uint8_t* bytes, int64_t n, int64_t k) {
  const CardFormat& f = layout.format;
  const int64_t tile = n / 16, pair = n % 8, row = n % 16 / 8, chunk = k / 256;
  const CardPlace place = card_place(f, static_cast<int>(n % 16), k);
  const uint8_t byte = bytes[(tile * layout.loads + place.load) * CardLayout::kLoad + place.byte];
  const auto code = static_cast<float>(f.bits == 4 ? (byte >> place.shift & 15) - f.zero()
                                                   : static_cast<int>(static_cast<int8_t>(byte)));
  const int64_t at = (tile * layout.chunks + chunk) * CardLayout::kPairs + pair;
  const uint8_t* const scale =
      bytes + layout.scales_at + at * f.pair_bytes() + (k % 256 / f.group * 2 + row) * f.scale_bytes();
  if (!f.is_k()) return f.has_low() ? load_f16(scale + 2) + load_f16(scale) * code : load_f16(scale) * code;
  const uint8_t* const d = bytes + layout.d_at + at * 8 + row * 4;
  const float s = load_f16(d) * static_cast<float>(static_cast<int8_t>(scale[0]));
  return f.has_low() ? s * code - load_f16(d + 2) * static_cast<float>(scale[1]) : s * code;
}

TEST(CardLayout, KeepsEveryWeight) {
  Rng rng(1);
  for (const QuantFormat& format : all_formats()) {
    SCOPED_TRACE(name_of(format));
    for (int trial = 0; trial < 12; ++trial) {
      const int64_t unit = fits(format, 1) ? 1 : format.group;
      const int64_t N = 1 + rng.below(60), K = unit * (1 + rng.below(std::max<int64_t>(4, 700 / unit)));
      const QuantizedTensor packed = random_bytes(format, N, K, rng);
      const CardLayout layout = card_layout(format, packed.shape);
      const Tensor bytes = repack_for_card(packed), expected = dequantize(packed);
      ASSERT_EQ(bytes.numel(), layout.bytes);
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < K; ++k) {
          const float got = weight_at(layout, bytes.data<uint8_t>(), n, k);
          ASSERT_EQ(std::memcmp(&got, expected.data<float>() + n * K + k, 4), 0) << n << " " << k;
        }
      }
    }
  }
}

// Types of 4 bits stay as small as their files, but for the rows and columns that fill up tiles.
TEST(CardLayout, TakesWhatTheFileTakes) {
  for (const char* type : {"q8_0", "q4_0", "q4_1", "q4_k"}) {
    const QuantFormat format = *quant_format(type);
    EXPECT_LT(card_layout(format, {1024, 2560}).bytes, 1024 * row_bytes(format, 2560) * 106 / 100) << type;
  }
  const QuantFormat int4 = *quant_format("int4", 128);
  EXPECT_EQ(card_layout(int4, {1024, 2560}).bytes, 1024 * row_bytes(int4, 2560));
}

}  // namespace
}  // namespace ssm
