// A chunk of four and five bits a weight with AVX512_VNNI, for linear_packed_few-inl.h: codes stay bytes, and
// an integer of x is two, 256 high + low, whose products with the codes are exact as well.
//
// A vector holds a block of 16 bytes of four runs: k, k + 4, k + 1 and k + 5 of a chunk, for k = 0 and k = 2,
// so that a half of the sums is what an accumulator takes. Two loads of a row cover such runs with their
// scales.
#if defined(SSM_OPS_LINEAR_PACKED_FEW_VNNI_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_LINEAR_PACKED_FEW_VNNI_INL_H_
#undef SSM_OPS_LINEAR_PACKED_FEW_VNNI_INL_H_
#else
#define SSM_OPS_LINEAR_PACKED_FEW_VNNI_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstring>

#include "ssm/ops/linear/linear_packed_formats-inl.h"
#include "ssm/ops/linear/linear_packed_rounding-inl.h"
#include "ssm/ops/linear/linear_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using cpu::PackedLayout;

template <class F>
inline constexpr bool kHasByteProducts = false;

// q of a chunk -> for each four runs, vectors of bytes: low and high ones of weights 0-15, then of 16-31.
HWY_INLINE void split_bytes(int16_t* q) {
  HWY_ALIGN std::array<int8_t, 2 * kChunk> bytes;
  for (int64_t half = 0; half < 2 * kChunkRuns; ++half) {
    const int64_t run = half / 2, k = run % 4, block = k % 2 * 2 + run / 4;
    const int16_t* const from = q + half * 16;
    int8_t* const to = bytes.data() + k / 2 * 256 + half % 2 * 128 + block * 16;
    for (int i = 0; i < 16; ++i) {
      to[i] = static_cast<int8_t>(from[i] & 255);
      to[64 + i] = static_cast<int8_t>(from[i] >> 8);
    }
  }
  std::memcpy(q, bytes.data(), bytes.size());
}

#if HWY_ARCH_X86 && HWY_TARGET == HWY_AVX3
template <bool kFive, bool low>
inline constexpr bool kHasByteProducts<Nibbles<32, kFive, low>> = true;

using Words = std::array<uint16_t, 32>;  // of a vector

// Where a chunk's bytes stand in two loads, `first` and `second`: of runs k and k + 1, of k + 4 and k + 5.
template <class F, int k>
struct FourRuns {
  static constexpr int kBytes = F::At::kBytes, first = F::At::scale(k);
  static constexpr int second = k == 0 ? F::At::scale(4) : 8 * kBytes - 64;  // not past the chunk
  static_assert(first + 64 <= 8 * kBytes && F::At::scale(k + 1) + kBytes <= first + 64);

  // The place of a word `offset` bytes into the run of block b.
  static constexpr uint16_t word(int b, int offset) {
    const int run = F::At::scale(k + b / 2 + b % 2 * 4) + offset;
    return static_cast<uint16_t>(b % 2 == 0 ? (run - first) / 2 : 32 + (run - second) / 2);
  }
  // Words of `period` that lie `offset` bytes into each run, again and again.
  static constexpr Words blocks(int offset, int period) {
    Words words{};
    for (int w = 0; w < 32; ++w) words[w] = word(w / 8, offset + w % period * 2);
    return words;
  }
  // Of each run the word at `offset`, once for each stream.
  static constexpr Words once(int offset) {
    Words words{};
    for (int w = 0; w < 16; ++w) words[w] = word(w / 4, offset);
    return words;
  }
  alignas(64) static constexpr Words kCodes = blocks(kBytes - 16, 8);
  alignas(64) static constexpr Words kFifths = blocks(kBytes - 20, 2);
  alignas(64) static constexpr Words kScale = once(0), kLow = once(2);
};

HWY_INLINE __m512i load_vector(const void* p) { return _mm512_loadu_si512(p); }

HWY_INLINE void add_byte_products(__m512i unsigned_bytes, __m512i signed_bytes, __m512i& sum) {
  // Not in Highway 1.0; the intrinsic would need all of its callers compiled for VNNI.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

template <class F, int k, int MR>
HWY_INLINE void four_runs(const PackedLayout& layout, const Bytes (&chunk)[kStreams], const RowsOfX& x,
                          int64_t c, VR (&acc)[MR][kRunVectors]) {
  using At = FourRuns<F, k>;
  constexpr bool kFive = F::kFive;
  const hn::ScalableTag<int32_t> di;
  __m512i codes[kStreams][2], scales = _mm512_setzero_si512(), lows = scales;
  SSM_UNROLL for (int i = 0; i < kStreams; ++i) {
    __m512i a = load_vector(chunk[i] + At::first), b = load_vector(chunk[i] + At::second);
    asm("" : "+v"(a), "+v"(b));  // GCC would load them for each permutation; they cross lines
    const auto words = [&](const Words& at)
                           HWY_ATTR { return _mm512_permutex2var_epi16(a, load_vector(at.data()), b); };
    const auto stream = [&](const Words& at) HWY_ATTR {
      const auto mask = static_cast<__mmask32>(0x1111 << i);
      return _mm512_maskz_permutex2var_epi16(mask, a, load_vector(at.data()), b);
    };
    const __m512i low_bits = _mm512_set1_epi8(15), bytes = words(At::kCodes);
    codes[i][0] = _mm512_and_si512(bytes, low_bits);
    codes[i][1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low_bits);
    if constexpr (kFive) {
      const __m512i fifths = words(At::kFifths),
                    bit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
      SSM_UNROLL for (int half = 0; half < 2; ++half) {
        const int64_t byte = half * 2 * 0x0101010101010101;
        const __m512i from = _mm512_broadcast_i32x4(_mm_set_epi64x(byte + 0x0101010101010101, byte));
        const __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifths, from), bit);
        codes[i][half] = _mm512_mask_add_epi8(codes[i][half], set, codes[i][half], _mm512_set1_epi8(16));
      }
    }
    scales = _mm512_or_si512(scales, stream(At::kScale));
    if constexpr (F::kLow) lows = _mm512_or_si512(lows, stream(At::kLow));
  }
  const __m512 scale = _mm512_cvtph_ps(_mm512_castsi512_si256(scales));
  const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(lows));
  SSM_UNROLL for (int r = 0; r < MR; ++r) {
    const int64_t at = r * layout.chunks + c, lane = at * kLanesOfChunk + k * 8;
    const int16_t* const q = x.q + at * kChunk + k * 64;
    const __m512i x_low[2] = {load_vector(q), load_vector(q + 64)};
    const __m512i x_high[2] = {load_vector(q + 32), load_vector(q + 96)};
    hn::Vec<decltype(di)> dot[kStreams];
    SSM_UNROLL for (int i = 0; i < kStreams; ++i) {
      __m512i sum = _mm512_setzero_si512();
      add_byte_products(codes[i][0], x_high[0], sum);
      add_byte_products(codes[i][1], x_high[1], sum);
      sum = _mm512_slli_epi32(sum, 8);
      add_byte_products(x_low[0], codes[i][0], sum);
      add_byte_products(x_low[1], codes[i][1], sum);
      dot[i].raw = sum;
    }
    __m512i sums = fold4(di, dot[0], dot[1], dot[2], dot[3]).raw;
    if constexpr (F::kOffset != 0) {
      sums = _mm512_sub_epi32(sums, _mm512_slli_epi32(load_vector(x.sum + lane), kFive ? 4 : 3));
    }
    const __m512 part = _mm512_mul_ps(_mm512_loadu_ps(x.step + lane), _mm512_cvtepi32_ps(sums));
    const __m512 total = _mm512_loadu_ps(x.total + lane);
    const auto add = [&](auto half) HWY_ATTR {
      const auto of = [](__m512 v) HWY_ATTR { return VR{_mm512_extractf32x8_ps(v, decltype(half)::value)}; };
      acc[r][0] = hn::MulAdd(of(scale), of(part), acc[r][0]);
      if constexpr (F::kLow) acc[r][0] = hn::MulAdd(of(low), of(total), acc[r][0]);
    };
    add(std::integral_constant<int, 0>());
    add(std::integral_constant<int, 1>());
  }
}

constexpr int kBytesAhead = 2048;  // that a stream is fetched: further than the hardware's prefetcher goes

// few_rows_chunk with the same bits.
template <class F, int MR>
HWY_INLINE void few_rows_chunk_of_bytes(const PackedLayout& layout, const Bytes (&chunk)[kStreams],
                                        const RowsOfX& x, int64_t c, VR (&acc)[MR][kRunVectors]) {
  SSM_UNROLL for (const Bytes at : chunk) {
    SSM_UNROLL for (int i = 0; i < 8 * F::At::kBytes; i += 64) __builtin_prefetch(at + kBytesAhead + i);
  }
  four_runs<F, 0>(layout, chunk, x, c, acc);
  four_runs<F, 2>(layout, chunk, x, c, acc);
}
#endif  // AVX3

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
