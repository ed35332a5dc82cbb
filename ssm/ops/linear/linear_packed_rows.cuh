// The product of few rows with a packed matrix on a card: what bounds it is reading the codes once.
//
// A warp multiplies a tile of 16 rows of W by a part of K, in chunks of 256. Codes become 16-bit floats,
// which hold them exactly, and go through the tensor cores as they are; scales are applied to the f32 sums of
// a group, so that no weight is ever rounded:
//
//   y = sum over groups of  scale (sum of c x) + low (sum of x)
//
// The sums of x are the product of a tile of ones; those of many rows are made once, by a kernel of their
// own. W is the matrix instruction's first operand, x the second: 8 rows of x a tile. f32 rows are taken
// apart into three bf16 parts, which hold all of their bits. As in linear_rows.cuh a warp reads its first
// chunks before grid_dependency_wait() and asks L2 for the rest.
#pragma once

#include "ssm/ops/cuda/packed.cuh"
#include "ssm/ops/linear/linear_rows.cuh"

namespace ssm::cuda {

struct PackedRowsArgs {
  PackedMatrix w;
  int T, K, part;  // K: values of a row of x, a multiple of 8, zeros beyond w.K; chunks of a warp
  bool staged;     // x, which lies in memory, is copied to shared memory first
  int64_t ahead;   // tiles that are on the card at once
  const float* totals = nullptr;  // the sums of groups of x [T][groups], with several tiles of x
};

// What multiplies values of type X.
template <class X>
struct MatrixTypeOf {
  using type = X;
};
template <>
struct MatrixTypeOf<float> {
  using type = __nv_bfloat16;
};

// Pairs of codes to pairs of floats by way of numbers whose last bit counts 1: 128 + n in bf16, 1024 + n in
// f16.
template <class M>
struct Codes;
template <>
struct Codes<__nv_bfloat16> {
  static constexpr uint32_t kOnes = 0x3f803f80u;
  static __device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b) {
    const __nv_bfloat162 r =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
    return reinterpret_cast<const uint32_t&>(r);
  }
  // Bits 0 to 3 and 16 to 19, less 8.
  static __device__ __forceinline__ uint32_t four_bits(uint32_t w) {
    return subtract((w & 0x000f000fu) | 0x43004300u, 0x43084308u);
  }
  // Bits 0 to 7 and 16 to 23, signed: 128 + seven bits less 128, or 256 where the sign is set.
  static __device__ __forceinline__ uint32_t eight_bits(uint32_t w) {
    return subtract((w & 0x007f007fu) | 0x43004300u, (w & 0x00800080u) | 0x43004300u);
  }
};
template <>
struct Codes<__half> {
  static constexpr uint32_t kOnes = 0x3c003c00u;
  static __device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b) {
    const __half2 r = __hsub2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
    return reinterpret_cast<const uint32_t&>(r);
  }
  static __device__ __forceinline__ uint32_t four_bits(uint32_t w) {
    return subtract((w & 0x000f000fu) | 0x64006400u, 0x64086408u);
  }
  static __device__ __forceinline__ uint32_t eight_bits(uint32_t w) {
    return subtract((w & 0x00ff00ffu) ^ 0x64806480u, 0x64806480u);
  }
};

// A lane's values of a row of x that meet 32 weights: two steps of the matrix instruction, two words each.
template <class X>
struct XUnit {
  static constexpr int kParts = sizeof(X) == 2 ? 1 : 3;
  uint4 raw[sizeof(X) / 2];

  // `x` is the row at the first of the 32, of which `left` are to be read.
  template <bool Short>
  __device__ __forceinline__ void read(const X* x, int left) {
    const int q = threadIdx.x % 4;
    if constexpr (sizeof(X) == 2 && !Short) {
      raw[0] = 8 * q < left ? *reinterpret_cast<const uint4*>(x + 8 * q) : uint4{};
    } else if constexpr (sizeof(X) == 2) {
      const uint2 a = 4 * q < left ? *reinterpret_cast<const uint2*>(x + 4 * q) : uint2{};
      const uint2 b = 16 + 4 * q < left ? *reinterpret_cast<const uint2*>(x + 16 + 4 * q) : uint2{};
      raw[0] = {a.x, a.y, b.x, b.y};
    } else {
      constexpr int kFirst = Short ? 4 : 8, kSecond = Short ? 16 : 4;
      const int i = kFirst * q;
      raw[0] = i < left ? *reinterpret_cast<const uint4*>(x + i) : uint4{};
      raw[1] = i + kSecond < left ? *reinterpret_cast<const uint4*>(x + i + kSecond) : uint4{};
    }
  }
  // The two words of `step`, 0 or 1; of f32 the part's upper 16 bits, which are then taken away.
  __device__ __forceinline__ void take(uint32_t& b0, uint32_t& b1, int step) {
    if constexpr (sizeof(X) == 2) {
      b0 = step == 0 ? raw[0].x : raw[0].z;
      b1 = step == 0 ? raw[0].y : raw[0].w;
    } else {
      uint4& v = raw[step];
      b0 = __byte_perm(v.x, v.y, 0x7632);
      b1 = __byte_perm(v.z, v.w, 0x7632);
      const auto rest = [](uint32_t word) {
        return __float_as_uint(__uint_as_float(word) - __uint_as_float(word & 0xffff0000u));
      };
      v = {rest(v.x), rest(v.y), rest(v.z), rest(v.w)};
    }
  }
};

// The sums of a tile of W with up to 8 * Tiles rows of x.
template <class X, class F, int Tiles>
struct PackedStrip {
  using M = typename MatrixTypeOf<X>::type;
  static constexpr int kScaleWords = F::kPairBytes / 4;
  static constexpr int kDepth = F::kBits == 4 && kScaleWords <= 8 && !F::kIsK ? 2 : 1;  // chunks held
  static constexpr int kAhead = 2;  // of x, units read at a time
  static constexpr int kRows = 8 * Tiles, kWidth = CardLayout::kTile, kSums = kRows * kWidth;
  static constexpr bool kSumsX = F::kHasLow && Tiles == 1;
  uint4 codes[kDepth][F::kLoads];
  uint32_t scales[kDepth][kScaleWords];
  uint2 d[F::kIsK ? kDepth : 1];
  float sums[Tiles][4] = {};

  // Of chunks [chunk, end) of a tile the first kDepth.
  __device__ __forceinline__ void read_weights(const PackedMatrix& w, int64_t tile, int chunk, int end) {
    const int lane = threadIdx.x % 32;
    const std::byte* code = w.codes + tile * w.loads * CardLayout::kLoad + lane * 16;
    const int64_t pair = tile * w.chunks * CardLayout::kPairs + lane / 4;
#pragma unroll
    for (int j = 0; j < kDepth; ++j) {
      const bool inside = chunk + j < end;
#pragma unroll
      for (int i = 0; i < F::kLoads; ++i) {
        const int load = (chunk + j) * F::kLoads + i;
        codes[j][i] =
            inside && load < w.loads ? load_weights(code + int64_t{load} * CardLayout::kLoad) : uint4{};
      }
      const int64_t at = pair + int64_t{chunk + j} * CardLayout::kPairs;
      const std::byte* const scale = w.scales + at * F::kPairBytes;
      if constexpr (kScaleWords == 2) {
        const uint2 v = inside ? __ldg(reinterpret_cast<const uint2*>(scale)) : uint2{};
        scales[j][0] = v.x, scales[j][1] = v.y;
      } else {
#pragma unroll
        for (int i = 0; i < kScaleWords; i += 4) {
          const uint4 v = inside ? load_weights(scale + 4 * i) : uint4{};
          scales[j][i] = v.x, scales[j][i + 1] = v.y, scales[j][i + 2] = v.z, scales[j][i + 3] = v.w;
        }
      }
      if constexpr (F::kIsK) d[j] = inside ? __ldg(reinterpret_cast<const uint2*>(w.d + at * 8)) : uint2{};
    }
  }

  // Asks L2 for chunks [chunk, end) of a tile.
  static __device__ __forceinline__ void prefetch_weights(const PackedMatrix& w, int64_t tile, int chunk,
                                                          int end) {
    const int lane = threadIdx.x % 32;
    const auto ask = [&](const std::byte* from, int64_t begin, int64_t bytes_end) {
      for (int64_t at = begin + lane * 128; at < bytes_end; at += 32 * 128) prefetch(from + at);
    };
    constexpr int64_t kCodes = F::kLoads * CardLayout::kLoad, kScales = CardLayout::kPairs * F::kPairBytes;
    const int64_t codes_end = int64_t{min(end * F::kLoads, w.loads)} * CardLayout::kLoad;
    ask(w.codes + tile * w.loads * CardLayout::kLoad, chunk * kCodes, codes_end);
    ask(w.scales + tile * w.chunks * kScales, chunk * kScales, end * kScales);
  }

  __device__ __forceinline__ void decode(uint32_t (&a)[4], int j, int step) const {
    constexpr int kSteps = F::kLoadWeights / 16;
    const uint4 v = codes[j][step / kSteps];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    if constexpr (F::kBits == 4) {
      const uint32_t w = words[step % kSteps];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = Codes<M>::four_bits(w >> 4 * i);
    } else {
      const uint32_t low = words[step % kSteps * 2], high = words[step % kSteps * 2 + 1];
      a[0] = Codes<M>::eight_bits(low), a[1] = Codes<M>::eight_bits(low >> 8);
      a[2] = Codes<M>::eight_bits(high), a[3] = Codes<M>::eight_bits(high >> 8);
    }
  }

  // Of rows g and g + 8, for codes as decode() leaves them.
  __device__ __forceinline__ void scales_of(GroupScale (&s)[2], int j, int group) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (F::kIsK) {
        // An integer below 2^23 into the last bits of 2^23; the signed one with 128 added.
        const uint32_t word = scales[j][group] ^ 0x00800080u, of_d = h == 0 ? d[j].x : d[j].y;
        const float n = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 | 2 * h)) - 8388736.0f;
        s[h].scale = half_bits(of_d & 0xffffu) * n;
        if constexpr (F::kHasLow) {
          const float m = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 | (2 * h + 1))) - 8388608.0f;
          s[h].low = -half_bits(of_d >> 16) * m;
        }
      } else if constexpr (F::kHasLow) {
        s[h] = f16_scale(scales[j][2 * group + h], true);
      } else {
        s[h].scale = half_bits(h == 0 ? scales[j][group] & 0xffffu : scales[j][group] >> 16);
      }
      if constexpr (F::kHasLow && F::kBits == 4) s[h].low += 8 * s[h].scale;
    }
  }

  // Held chunk j with the values of x that belong to it: the first of `left` is at `x`, rows are `x_stride`
  // apart, there are T. With several tiles the sums of its groups of the first row are at `totals`, of others
  // `groups` on.
  __device__ __forceinline__ void multiply(int j, const X* x, int64_t x_stride, int T, int left,
                                           const float* totals, int groups) {
    const int g = threadIdx.x % 32 / 4;
    float products[Tiles][4], x_sums[4];  // of x_sums two are used
    const uint32_t ones[4] = {Codes<M>::kOnes, Codes<M>::kOnes, Codes<M>::kOnes, Codes<M>::kOnes};
#pragma unroll
    for (int first = 0; first < 8; first += kAhead) {
      if (first * 32 >= left && first * 32 % F::kGroup == 0) break;
      XUnit<X> units[kAhead][Tiles];
#pragma unroll
      for (int u = 0; u < kAhead; ++u) {
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
          const int row = 8 * t + g, k = (first + u) * 32;
          units[u][t].template read<F::kGroup == 16>(x + row * x_stride + k, row < T ? left - k : 0);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kAhead; ++i) {
        const int step = 2 * first + i;
        if (step * 16 % F::kGroup == 0) {
#pragma unroll
          for (int t = 0; t < Tiles; ++t) clear(products[t]);
          clear(x_sums);
        }
        uint32_t a[4];
        decode(a, j, step);
#pragma unroll
        for (int t = 0; t < Tiles; ++t) {
#pragma unroll
          for (int p = 0; p < XUnit<X>::kParts; ++p) {
            uint32_t b0, b1;
            units[i / 2][t].take(b0, b1, i % 2);
            mma<M>(products[t], a, b0, b1);
            if constexpr (kSumsX) mma<M>(x_sums, ones, b0, b1);
          }
        }
        if ((step + 1) * 16 % F::kGroup == 0) {
          const int group = step * 16 / F::kGroup;
          add_group(j, group, products, x_sums, totals + group, groups, T);
        }
      }
    }
  }

  static __device__ __forceinline__ void clear(float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = 0;
  }

  __device__ __forceinline__ void add_group(int j, int group, const float (&products)[Tiles][4],
                                            const float (&x_sums)[4], const float* totals, int groups,
                                            int T) {
    GroupScale s[2];
    scales_of(s, j, group);
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[t][i] += s[i / 2].scale * products[t][i];
      if constexpr (F::kHasLow) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // columns beyond T are nobody's
          float total = x_sums[i];
          if constexpr (!kSumsX)
            total = totals[min(8 * t + 2 * static_cast<int>(threadIdx.x % 4) + i, T - 1) * groups];
          sums[t][i] += s[0].low * total;
          sums[t][2 + i] += s[1].low * total;
        }
      }
    }
  }

  // The sums of each group of x, to shared memory [T][groups], four threads a group.
  static __device__ __forceinline__ void sum_groups(const X* x, int64_t x_stride, int T, int K, int groups,
                                                    float* to) {
    const int thread = static_cast<int>(threadIdx.x + 32 * (threadIdx.y + blockDim.y * threadIdx.z));
    const int fours = static_cast<int>(8 * blockDim.y * blockDim.z), own = thread % 4;
    const uint32_t mask = 0xfu << (thread % 32 / 4 * 4);
    for (int i = thread / 4; i < T * groups; i += fours) {
      const int t = i / groups, end = min((i % groups + 1) * F::kGroup, K);
      float sum = 0;
      for (int k = i % groups * F::kGroup + own * kPack<X>; k < end; k += 4 * kPack<X>) {
        float values[kPack<X>];
        load<kPack<X>>(values, x + t * x_stride + k);
#pragma unroll
        for (int j = 0; j < kPack<X>; ++j) sum += values[j];
      }
      sum += __shfl_xor_sync(mask, sum, 1);
      sum += __shfl_xor_sync(mask, sum, 2);
      if (own == 0) to[i] = sum;
    }
  }

  // Chunks [chunk, end); the first kDepth have been read. `totals` where F has lows and there are several
  // tiles.
  __device__ __forceinline__ void multiply_all(const PackedMatrix& w, int64_t tile, int chunk, int end,
                                               const X* x, int64_t x_stride, int T, int K,
                                               const float* totals = nullptr) {
    constexpr int kOfChunk = CardLayout::kChunk / F::kGroup;
    for (int c = chunk; c < end; c += kDepth) {
      if (c != chunk) read_weights(w, tile, c, end);
#pragma unroll
      for (int j = 0; j < kDepth; ++j) {
        const int k = (c + j) * CardLayout::kChunk;
        if (c + j < end)
          multiply(j, x + k, x_stride, T, K - k, totals + (c + j) * kOfChunk, w.chunks * kOfChunk);
      }
    }
  }

  // Hands the sums to shared memory [kRows][kWidth].
  __device__ __forceinline__ void give(float* to) const {
    const int q = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(8 * t + 2 * q + i % 2) * kWidth + g + i / 2 * 8] = sums[t][i];
    }
  }
};

// Twenty warps of 96 registers fill a multiprocessor, in blocks of at most ten, since a large block finds
// room late; of several tiles of x ten with more registers.
template <int Tiles>
inline constexpr int kPackedWarps = Tiles == 1 ? 20 : 10;
constexpr int kPackedParts = 10;
constexpr size_t kPackedStaged = 20 << 10;  // bytes of x

// Bytes of the sums of a row's groups.
inline int64_t totals_bytes(const CardFormat& f, int64_t K) {
  return f.has_low() ? (K + 255) / 256 * (256 / f.group) * 4 : 0;
}

// Blocks of (32, parts of K, tiles) threads, as linear_rows_kernel's; Source and Epilogue are the same.
template <class X, class F, int Tiles, class Source, class Epilogue>
__global__ void __launch_bounds__(32 * kPackedParts, kPackedWarps<Tiles> / kPackedParts)
    linear_packed_rows_kernel(const PackedRowsArgs a, const Source source, const Epilogue epilogue) {
  using Sums = PackedStrip<X, F, Tiles>;
  extern __shared__ float4 shared[];
  const int parts = blockDim.y, part = threadIdx.y, strip = threadIdx.z;
  float* sums_of_block = reinterpret_cast<float*>(shared);
  float* given = sums_of_block + strip * parts * Sums::kSums;
  X* staged = reinterpret_cast<X*>(sums_of_block + blockDim.z * parts * Sums::kSums);
  const int64_t tile = int64_t{blockIdx.x} * blockDim.z + strip, n0 = tile * Sums::kWidth, rows = a.w.N - n0;
  const int begin = part * a.part, end = rows > 0 ? min(begin + a.part, a.w.chunks) : begin;
  Sums sums;
  sums.read_weights(a.w, tile, begin, end);
  sums.prefetch_weights(a.w, tile, begin + Sums::kDepth, end);
  if (tile + a.ahead < a.w.tiles) sums.prefetch_weights(a.w, tile + a.ahead, begin, end);
  let_next_start();
  const int i0 = part * 32 + threadIdx.x, column = i0 % Sums::kWidth;
  const bool owns = column < rows && i0 < a.T * Sums::kWidth;
  const int64_t n = n0 + column;
  typename Epilogue::Held held;
  if (owns) epilogue.read_parameters(held, i0 / Sums::kWidth, n);
  grid_dependency_wait();
  if (owns) epilogue.read_inputs(held, i0 / Sums::kWidth, n);
  const X* x = staged;
  int64_t stride = a.K;
  if constexpr (Source::kStaged) {
    source.stage(staged, sums_of_block, a.T, a.K);
  } else {
    x = source.x, stride = source.stride;
    if (Tiles == 1 && a.staged) {
      const int threads = static_cast<int>(32 * blockDim.y * blockDim.z), row_packs = a.K / kPack<X>;
      for (int i = static_cast<int>(threadIdx.x + 32 * (part + parts * strip)); i < a.T * row_packs;
           i += threads) {
        const X* const from = x + i / row_packs * stride + i % row_packs * kPack<X>;
        *reinterpret_cast<uint4*>(staged + i * kPack<X>) = *reinterpret_cast<const uint4*>(from);
      }
      __syncthreads();
      x = staged, stride = a.K;
    }
  }
  sums.multiply_all(a.w, tile, begin, end, x, stride, a.T, a.K, a.totals);
  sums.give(given + part * Sums::kSums);
  __syncthreads();
  if (!owns) return;
  for (int i = i0; i < a.T * Sums::kWidth; i += parts * 32) {
    const int t = i / Sums::kWidth;
    if (i != i0) {
      epilogue.read_parameters(held, t, n);
      epilogue.read_inputs(held, t, n);
    }
    float sum = 0;
#pragma unroll 5
    for (int p = 0; p < parts; ++p) sum += given[p * Sums::kSums + i];
    epilogue.write(held, t, n, sum);
  }
}

// The sums of x's groups for all rows at once.
template <class X, class F>
__global__ void linear_packed_totals_kernel(const X* x, int64_t stride, int K, int groups, float* to) {
  grid_dependency_wait();
  let_next_start();
  const int64_t t = blockIdx.x;
  PackedStrip<X, F, 1>::sum_groups(x + t * stride, 0, 1, K, groups, to + t * groups);
}

// Every warp holds its part of K where all blocks then fit on the card at once: all of W is asked for before
// anything is waited for. Where they do not, the first ask L2 for the tiles of those that come after them.
template <class X, class F, int Tiles, class Source, class Epilogue>
void launch_packed_rows(PackedRowsArgs a, const Source& source, const Epilogue& epilogue) {
  using Sums = PackedStrip<X, F, Tiles>;
  constexpr int kWarps = kPackedWarps<Tiles>;
  const int64_t multiprocessors = properties().multiprocessors;
  int parts = std::clamp((a.w.chunks + Sums::kDepth - 1) / Sums::kDepth, 1, kPackedParts);
  while (parts > 5 && a.w.tiles > multiprocessors * (kWarps / parts)) parts = (parts + 1) / 2;
  a.part = (a.w.chunks + parts - 1) / parts;
  parts = (a.w.chunks + a.part - 1) / a.part;
  // Wide blocks where each makes the rows for itself.
  const int strips = std::max(1, (Source::kStaged ? 10 : 4) / parts);
  a.ahead = multiprocessors * (kWarps / (parts * strips)) * strips;
  const size_t bytes = sizeof(X) * static_cast<size_t>(a.T) * static_cast<size_t>(a.K);
  a.staged = Tiles == 1 && bytes <= kPackedStaged;
  const size_t sums = sizeof(float) * Sums::kSums * static_cast<size_t>(parts * strips);
  launch({.grid = dim3(static_cast<unsigned>((a.w.tiles + strips - 1) / strips)),
          .block = dim3(32, static_cast<unsigned>(parts), static_cast<unsigned>(strips)),
          .shared_bytes = sums + (Source::kStaged || a.staged ? bytes : 0),
          .overlaps_previous = true},
         linear_packed_rows_kernel<X, F, Tiles, Source, Epilogue>, a, source, epilogue);
}

inline PackedRowsArgs args_of(int64_t T, const PackedMatrix& w) {
  return {.w = w,
          .T = static_cast<int>(T),
          .K = static_cast<int>(w.K + 7) / 8 * 8,
          .part = 0,
          .staged = false,
          .ahead = 0};
}

}  // namespace ssm::cuda
