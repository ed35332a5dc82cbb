// The packed formats as the kernels see them, once per Highway target: the codes of a run as 16-bit integers,
// and the scales of a chunk. To add one is to write these two functions.
#if defined(SSM_OPS_LINEAR_PACKED_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_LINEAR_PACKED_FORMATS_INL_H_
#undef SSM_OPS_LINEAR_PACKED_FORMATS_INL_H_
#else
#define SSM_OPS_LINEAR_PACKED_FORMATS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/linear/linear_packed.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using DC = hn::CappedTag<int16_t, 16>;  // codes; 256-bit vectors are as fast as longer ones from memory
using DR = hn::CappedTag<float, 8>;     // a number a run
using DRI = hn::RebindToSigned<DR>;
using VC = hn::Vec<DC>;
using VR = hn::Vec<DR>;
using VRI = hn::Vec<DRI>;
constexpr int kCodeLanes = hn::MaxLanes(DC());
constexpr int kCodeVectors = cpu::kRun / kCodeLanes;
constexpr int kRunLanes = hn::MaxLanes(DR());
constexpr int kRunVectors = cpu::kChunkRuns / kRunLanes;

using Bytes = const uint8_t*;

HWY_INLINE VC load_u8(Bytes p) { return hn::PromoteTo(DC(), hn::LoadU(hn::Rebind<uint8_t, DC>(), p)); }
HWY_INLINE VC load_i8(Bytes p) {
  return hn::PromoteTo(DC(), hn::LoadU(hn::Rebind<int8_t, DC>(), reinterpret_cast<const int8_t*>(p)));
}
HWY_INLINE VC low_bits(VC v, int16_t mask) { return hn::And(v, hn::Set(DC(), mask)); }

// The bits from `from` on, moved to begin at `to`, and cut off by `mask`.
template <int from, int to>
HWY_INLINE VC moved_bits(VC v, int16_t mask) {
  if constexpr (from > to) return low_bits(hn::ShiftRight<from - to>(v), mask);
  if constexpr (from < to) return low_bits(hn::ShiftLeft<to - from>(v), mask);
  return low_bits(v, mask);
}

// Sixteen bytes: 16 low halves, then 16 high ones.
HWY_INLINE void nibbles(Bytes p, VC (&out)[kCodeVectors]) {
  SSM_UNROLL for (int v = 0; v < kCodeVectors / 2; ++v) {
    const VC b = load_u8(p + v * kCodeLanes);
    out[v] = low_bits(b, 15);
    out[v + kCodeVectors / 2] = hn::ShiftRight<4>(b);
  }
}

// Adds 16 where the run's bit is set.
HWY_INLINE void add_fifth_bits(Bytes bits, VC (&out)[kCodeVectors]) {
  SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
    const auto set = hn::LoadMaskBits(DC(), bits + v * kCodeLanes / 8);
    out[v] = hn::Or(out[v], hn::IfThenElseZero(set, hn::Set(DC(), 16)));
  }
}

// Blocks of kGroup weights, kRunBytes for each 32 after the header.
template <int kGroup, int kHeader, int kRunBytes>
struct Blocks {
  static constexpr int kBytes = kHeader + kGroup / 32 * kRunBytes;
  static constexpr int scale(int j) { return j * 32 / kGroup * kBytes; }
  static constexpr int codes(int j) { return scale(j) + kHeader + j * 32 % kGroup / 32 * kRunBytes; }
};

// An f16 of each run, `offset` bytes into its block.
template <class At>
HWY_INLINE void load_scales(Bytes chunk, int offset, VR (&out)[kRunVectors]) {
  const auto half = [&](int j) HWY_ATTR {
    uint16_t bits;
    std::memcpy(&bits, chunk + At::scale(j) + offset, 2);
    return bits;
  };
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  __m128i v = _mm_cvtsi32_si128(half(0));
  v = _mm_insert_epi16(v, half(1), 1);
  v = _mm_insert_epi16(v, half(2), 2);
  v = _mm_insert_epi16(v, half(3), 3);
  v = _mm_insert_epi16(v, half(4), 4);
  v = _mm_insert_epi16(v, half(5), 5);
  v = _mm_insert_epi16(v, half(6), 6);
  v = _mm_insert_epi16(v, half(7), 7);
  out[0] = VR{_mm256_cvtph_ps(v)};
#else
  Float16 halves[8];
  for (int j = 0; j < 8; ++j) halves[j].bits = half(j);
  SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) out[v] = load_f32(DR(), halves + v * kRunLanes);
#endif
}

HWY_INLINE VR load_scale(Bytes p) {
  Float16 half;
  std::memcpy(&half.bits, p, 2);
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
  return VR{_mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(half.bits)))};
#else
  return hn::Set(DR(), to_float(half));
#endif
}

// Eight bytes as numbers.
template <class T>
HWY_INLINE void bytes_to_f32(uint64_t bytes, VR (&out)[kRunVectors]) {
  T b[8];
  std::memcpy(b, &bytes, 8);
  SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
    out[v] = hn::ConvertTo(DR(), hn::PromoteTo(DRI(), hn::LoadU(hn::Rebind<T, DR>(), b + v * kRunLanes)));
  }
}

HWY_INLINE void multiply(VR factor, VR (&v)[kRunVectors]) {
  SSM_UNROLL for (auto& x : v) x = hn::Mul(x, factor);
}

// A format has
//   kScales   scales of a run: 1, or 2 of 16 weights each
//   kLow      whether weights are scale * code + low
//   kOffset   what the codes have on top: weights are scale * (code - kOffset)
//   codes<j>  of run j of a chunk
//   scales    [kScales] and where kLow as many lows, each of eight runs
template <int kGroup>
struct Signed8 {  // q8_0, int8
  using At = Blocks<kGroup, 2, 32>;
  static constexpr int kScales = 1, kOffset = 0;
  static constexpr bool kLow = false;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) out[v] = load_i8(chunk + At::codes(j) + v * kCodeLanes);
  }
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*)[kRunVectors]) {
    load_scales<At>(chunk, 0, scale[0]);
  }
};

template <int kGroup, bool five, bool low>
struct Nibbles {  // q4_0, q5_0; where low: q4_1, q5_1, int4
  using At = Blocks<kGroup, (low ? 4 : 2) + (five ? 4 : 0), 16>;
  static constexpr bool kFive = five;
  static constexpr int kScales = 1, kOffset = low ? 0 : five ? 16 : 8;
  static constexpr bool kLow = low;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    const Bytes p = chunk + At::codes(j);
    nibbles(p, out);
    if constexpr (kFive) add_fifth_bits(p - 4, out);
  }
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*lows)[kRunVectors]) {
    load_scales<At>(chunk, 0, scale[0]);
    if constexpr (low) load_scales<At>(chunk, 2, lows[0]);
  }
};

template <bool kFive>
struct Nibbles256 {  // q4_k, q5_k
  static constexpr int kScales = 1, kOffset = 0;
  static constexpr bool kLow = true;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    const Bytes p = chunk + (kFive ? 48 : 16) + j / 2 * 32;
    SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
      out[v] = moved_bits<j % 2 * 4, 0>(load_u8(p + v * kCodeLanes), 15);
      if constexpr (kFive) {
        out[v] = hn::Or(out[v], moved_bits<j, 4>(load_u8(chunk + 16 + v * kCodeLanes), 16));
      }
    }
  }
  // Eight pairs of six bits in twelve bytes (ssm/quant/blocks.h), all at once.
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*lows)[kRunVectors]) {
    uint32_t p[3];
    std::memcpy(p, chunk + 4, 12);
    const uint64_t high = p[2] & 0x0F0F0F0F, high_low = p[2] >> 4 & 0x0F0F0F0F;
    const uint64_t scale_bits = (p[0] & 0x3F3F3F3F) | (high | (p[0] >> 2 & 0x30303030)) << 32;
    const uint64_t low_bits = (p[1] & 0x3F3F3F3F) | (high_low | (p[1] >> 2 & 0x30303030)) << 32;
    bytes_to_f32<uint8_t>(scale_bits, scale[0]);
    bytes_to_f32<uint8_t>(low_bits, lows[0]);
    multiply(load_scale(chunk), scale[0]);
    multiply(hn::Neg(load_scale(chunk + 2)), lows[0]);
  }
};

struct Q2K {
  static constexpr int kScales = 2, kOffset = 0;
  static constexpr bool kLow = true;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
      out[v] = moved_bits<j % 4 * 2, 0>(load_u8(chunk + 16 + j / 4 * 32 + v * kCodeLanes), 3);
    }
  }
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*lows)[kRunVectors]) {
    const VR d = load_scale(chunk + 80), dmin = hn::Neg(load_scale(chunk + 82));
    for (size_t half = 0; half < 2; ++half) {
      uint64_t bytes = 0;
      for (size_t j = 0; j < 8; ++j) bytes |= uint64_t{chunk[2 * j + half]} << (8 * j);
      bytes_to_f32<uint8_t>(bytes & 0x0F0F0F0F0F0F0F0F, scale[half]);
      bytes_to_f32<uint8_t>(bytes >> 4 & 0x0F0F0F0F0F0F0F0F, lows[half]);
      multiply(d, scale[half]);
      multiply(dmin, lows[half]);
    }
  }
};

struct Q3K {
  static constexpr int kScales = 2, kOffset = 4;
  static constexpr bool kLow = false;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
      const VC low = moved_bits<j % 4 * 2, 0>(load_u8(chunk + 32 + j / 4 * 32 + v * kCodeLanes), 3);
      out[v] = hn::Or(low, moved_bits<j, 2>(load_u8(chunk + v * kCodeLanes), 4));
    }
  }
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*)[kRunVectors]) {
    const Bytes packed = chunk + 96;
    const VR d = load_scale(chunk + 108);
    for (int half = 0; half < 2; ++half) {
      uint64_t bytes = 0;
      for (int j = 0; j < 8; ++j) {
        const int g = 2 * j + half;
        const int low = packed[g % 8] >> (g / 8 * 4) & 15, high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        bytes |= uint64_t{static_cast<uint8_t>((low | high << 4) - 32)} << (8 * j);
      }
      bytes_to_f32<int8_t>(bytes, scale[half]);
      multiply(d, scale[half]);
    }
  }
};

struct Q6K {
  static constexpr int kScales = 2, kOffset = 32;
  static constexpr bool kLow = false;
  template <int j>
  static HWY_INLINE void codes(Bytes chunk, VC (&out)[kCodeVectors]) {
    const Bytes low = chunk + j / 4 * 64 + j % 2 * 32, high = chunk + 128 + j / 4 * 32;
    SSM_UNROLL for (int v = 0; v < kCodeVectors; ++v) {
      out[v] = hn::Or(moved_bits<j / 2 % 2 * 4, 0>(load_u8(low + v * kCodeLanes), 15),
                      moved_bits<j % 4 * 2, 4>(load_u8(high + v * kCodeLanes), 48));
    }
  }
  // Sixteen signed bytes: those of even groups are the low halves of eight 16-bit numbers.
  static HWY_INLINE void scales(Bytes chunk, VR (*scale)[kRunVectors], VR (*)[kRunVectors]) {
    const hn::Rebind<int16_t, DR> d16;
    const VR d = load_scale(chunk + 208);
    SSM_UNROLL for (int v = 0; v < kRunVectors; ++v) {
      int16_t pairs[kRunLanes];
      std::memcpy(pairs, chunk + 192 + v * 2 * kRunLanes, sizeof(pairs));
      const auto both = hn::LoadU(d16, pairs);
      const auto even = hn::ShiftRight<8>(hn::ShiftLeft<8>(both)), odd = hn::ShiftRight<8>(both);
      scale[0][v] = hn::Mul(d, hn::ConvertTo(DR(), hn::PromoteTo(DRI(), even)));
      scale[1][v] = hn::Mul(d, hn::ConvertTo(DR(), hn::PromoteTo(DRI(), odd)));
    }
  }
};

// Each calls f with the format's struct: the formats of a byte a weight, of four and five bits in blocks of
// their own, and of blocks of 256.
template <class F>
HWY_INLINE void with_byte_format(const QuantFormat& format, F&& f) {
  if (format.type == QuantType::q8_0 || format.group == 32) return f(Signed8<32>());
  format.group == 64 ? f(Signed8<64>()) : f(Signed8<128>());
}

template <class F>
HWY_INLINE void with_nibble_format(const QuantFormat& format, F&& f) {
  switch (format.type) {
    case QuantType::q4_0:
      return f(Nibbles<32, false, false>());
    case QuantType::q5_0:
      return f(Nibbles<32, true, false>());
    case QuantType::q5_1:
      return f(Nibbles<32, true, true>());
    default:  // q4_1, int4
      if (format.type == QuantType::q4_1 || format.group == 32) return f(Nibbles<32, false, true>());
      format.group == 64 ? f(Nibbles<64, false, true>()) : f(Nibbles<128, false, true>());
  }
}

template <class F>
HWY_INLINE void with_superblock_format(const QuantFormat& format, F&& f) {
  switch (format.type) {
    case QuantType::q2_k:
      return f(Q2K());
    case QuantType::q3_k:
      return f(Q3K());
    case QuantType::q4_k:
      return f(Nibbles256<false>());
    case QuantType::q5_k:
      return f(Nibbles256<true>());
    default:
      return f(Q6K());
  }
}

template <class F>
HWY_INLINE void with_format(const QuantFormat& format, F&& f) {
  switch (cpu::packed_kind(format.type)) {
    case cpu::PackedKind::bytes:
      return with_byte_format(format, f);
    case cpu::PackedKind::nibbles:
      return with_nibble_format(format, f);
    case cpu::PackedKind::superblocks:
      return with_superblock_format(format, f);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
