// What the tensor-core kernels of ssd_scan share: how a block's channels map to heads, how tiles get to
// shared memory, the factors that dt and A give, and the product that updates the state.
//
// A block has W warps, four or eight. Each keeps the transposed state h^T [16 channels of one head, N] in f32
// registers while it walks a segment tile by tile (kSsdTile tokens); the block's channels, up to four heads',
// are all of one group and share B and C. Channels stand along the rows of the products, so that the state
// never leaves registers: its accumulators, packed, are the left operand of h^T C^T.
#pragma once

#include <algorithm>
#include <type_traits>

#include "ssm/ops/cuda/mma.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda {

inline constexpr int kSsdMostHeads = 4;  // of a block

// Channels in runs of 16, of which a head has `units_per_head` and a block takes one a warp.
template <int W>
struct SsdUnits {
  int units_per_head, units_per_group, blocks_per_group;
  __host__ __device__ explicit SsdUnits(const SsdView& a)
      : units_per_head((a.P + 16 - 1) / (16)),
        units_per_group(units_per_head * (a.H / a.G)),
        blocks_per_group((units_per_group + W - 1) / W) {}
  __host__ __device__ int most_heads() const {
    if (units_per_head % W == 0) return 1;
    // Runs of W units that begin at multiples of W.
    return W % units_per_head == 0 ? W / units_per_head : (W - 2) / units_per_head + 2;
  }
};

// The block's channels, and this thread's part of them.
template <int W>
struct SsdChannels {
  int group, first_unit, first_head, heads;  // heads: how many the block touches
  int head, p_begin, p_count;                // this warp's; p_count is 0 where there is nothing left for it
  __device__ SsdChannels(const SsdView& a, const SsdUnits<W>& units, int block) {
    group = block / units.blocks_per_group;
    first_unit = block % units.blocks_per_group * W;
    const int heads_per_group = a.H / a.G, unit = first_unit + threadIdx.x / 32;
    const int last = min(first_unit + W, units.units_per_group) - 1;
    first_head = group * heads_per_group + first_unit / units.units_per_head;
    heads = group * heads_per_group + last / units.units_per_head - first_head + 1;
    const bool there = unit <= last;
    head = there ? group * heads_per_group + unit / units.units_per_head : first_head;
    p_begin = unit % units.units_per_head * 16;
    p_count = there ? min(16, a.P - p_begin) : 0;
  }
};

// A tile of 64 rows of `kColumns` 16-bit elements in shared memory, 16-byte vectors permuted within a row so
// that eight rows at one column lie in different banks.
template <int kColumns>
__device__ __forceinline__ uint32_t tile_offset(int row, int vector) {
  constexpr int kVectors = kColumns / 8;
  const int spread = kVectors >= 8 ? row & 7 : row / (8 / kVectors) & (kVectors - 1);
  return static_cast<uint32_t>((row * kVectors + (vector ^ spread)) * 16);
}
// From an address in a tile, `pairs` pairs of vectors further along a row (whose first vector is 0 or 1), and
// 16 `blocks` rows down: tiles are aligned to their rows, so that a row's permutation is an exclusive or.
template <int kColumns>
__device__ __forceinline__ uint32_t moved(uint32_t address, int pairs, int blocks) {
  return (address ^ static_cast<uint32_t>(32 * pairs)) + static_cast<uint32_t>(32 * kColumns * blocks);
}

// Fills a tile with rows [0, rows) from `from`, which points at this thread's vector of the first row,
// `columns` of whose elements are there; the rest becomes zeros. `vectors`: 16-byte accesses are aligned.
template <int W, int kColumns, class X>
__device__ __forceinline__ void load_tile(unsigned char* tile, const X* from, int64_t stride, int rows,
                                          int columns, bool vectors) {
  constexpr int kVectors = kColumns / 8, kRows = 32 * W / kVectors;
  const int vector = threadIdx.x % kVectors, first = threadIdx.x / kVectors;
  if (vectors) {
    const uint32_t to = shared_address(tile), begin = to + tile_offset<kColumns>(first, vector);
    const int end = columns > 0 ? rows - first : 0;
    const X* at = from + first * stride;
#pragma unroll
    for (int i = 0; i < kSsdTile / kRows; ++i) {
      // Eight rows on, the permutation of a row repeats.
      copy_async(kRows % 8 == 0 ? begin + i * kRows * kVectors * 16
                                : to + tile_offset<kColumns>(first + i * kRows, vector),
                 at, i * kRows < end);
      at += kRows * stride;
    }
    return;
  }
#pragma unroll 1
  for (int row = first; row < kSsdTile; row += kRows) {
    Pack<X, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      pack.values[i] = row < rows && i < columns ? from[row * stride + i] : from_f32<X>(0.0f);
    *reinterpret_cast<Pack<X, 8>*>(tile + tile_offset<kColumns>(row, vector)) = pack;
  }
}

// This thread's vector of x's tile [64, 16 W].
template <int W, class X>
struct SsdChannelSource {
  const X* from;  // of row 0
  int columns;
  __device__ SsdChannelSource(const SsdView& a, const SsdUnits<W>& units, const SsdChannels<W>& channels) {
    constexpr int kPerUnit = 2;  // vectors
    const int vector = threadIdx.x % (W * kPerUnit), unit = channels.first_unit + vector / kPerUnit;
    const int head = channels.group * (a.H / a.G) + unit / units.units_per_head;
    const int p = unit % units.units_per_head * 16 + vector % kPerUnit * 8;
    columns = unit < units.units_per_group ? max(0, min(8, a.P - p)) : 0;
    from = static_cast<const X*>(a.x) + (columns > 0 ? int64_t{head} * a.P + p : 0);
  }
};

// This thread's vector of B's or C's tile [64, kN].
template <int kN, class X>
struct SsdStateSource {
  const X* from;
  int columns;
  __device__ SsdStateSource(const SsdView& a, const void* rows, int group) {
    const int n = threadIdx.x % (kN / 8) * 8;
    columns = max(0, min(8, a.N - n));
    from = static_cast<const X*>(rows) + int64_t{group} * a.N + (columns > 0 ? n : 0);
  }
};

// What dt and A give for one head and tile: with L_t = log2 of the product of decays up to and including
// token t, and L the last of them,
struct alignas(16) SsdFactors {
  float log[kSsdTile];      // L_t
  float source[kSsdTile];   // log2(dt'_t) - L_t, so that M[t, s] = S[t, s] 2^(L_t + source_s)
  float reached[kSsdTile];  // 2^L_t, what is left of the tile's first state at t
  float left[kSsdTile];     // dt'_t 2^(L - L_t), what of token t is left at the end
  float decay;              // 2^L
};

// Each warp prepares one of the block's heads: it fetches dt of a tile early and computes the factors later.
// Lane l has tokens 2l and 2l + 1. Rows that are not there leave the state as it is.
template <class X>
struct SsdFactorMaker {
  const X* dt;
  float A, bias;  // A log2(e)
  bool active;
  X raw[2];  // not widened here: that would wait for memory
  int rows;
  __device__ SsdFactorMaker(const SsdView& a, int64_t begin, int first_head, int heads) {
    const int warp = threadIdx.x / 32;
    active = warp < heads;
    const int head = first_head + (active ? warp : 0);
    dt = static_cast<const X*>(a.dt) + begin * a.dt_stride + head;
    A = a.A[head] * kLog2e, bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  }
  __device__ void fetch(const SsdView& a, int first, int length) {
    rows = min(kSsdTile, length - first);
    if (!active) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = threadIdx.x % 32 * 2 + i;
      raw[i] = dt[(first + min(t, rows - 1)) * a.dt_stride];
    }
  }
  __device__ void make(const SsdView& a, SsdFactors* to) const {
    if (!active) return;
    const int lane = threadIdx.x % 32;
    float step[2], log[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      step[i] = lane * 2 + i < rows ? ssd_step_size(a, to_f32(raw[i]) + bias) : 0.0f;
      // 2^-160 is zero in f32; held there, steps that forget everything leave the sums of others exact.
      log[i] = fmaxf(step[i] * A, -160.0f);
    }
    log[1] += log[0];
    float sum = log[1];
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += before;
    }
    const float all = __shfl_sync(0xffffffffu, sum, 31);
    log[0] += sum - log[1], log[1] = sum;
    SsdFactors& f = to[threadIdx.x / 32];
    const int t = lane * 2;
    *reinterpret_cast<float2*>(&f.log[t]) = {log[0], log[1]};
    *reinterpret_cast<float2*>(&f.source[t]) = {__log2f(step[0]) - log[0], __log2f(step[1]) - log[1]};
    *reinterpret_cast<float2*>(&f.reached[t]) = {exp2_fast(log[0]), exp2_fast(log[1])};
    *reinterpret_cast<float2*>(&f.left[t]) = {step[0] * exp2_fast(all - log[0]),
                                              step[1] * exp2_fast(all - log[1])};
    if (lane == 0) f.decay = exp2_fast(all);
  }
};

// The A fragment of x^T: the warp's channels, tokens [16 k, 16 k + 16) of the tile.
template <int W>
__device__ __forceinline__ void load_x_fragment(uint32_t (&to)[4], uint32_t tile, int k) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t at = tile + tile_offset<16 * W>(lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2);
  ldmatrix_transposed(to, moved<16 * W>(at, 0, k));
}

// h^T = decay h^T + (x left)^T B over a tile.
template <class X, int kN, int W>
__device__ __forceinline__ void update_state(float (&h)[kN / 8][4], const SsdFactors& f, uint32_t x_tile,
                                             uint32_t B_tile) {
  const int lane = threadIdx.x % 32, q = lane % 4;
  const float decay = f.decay;
  const uint32_t B_at = B_tile + tile_offset<kN>(lane % 16, lane / 16);
#pragma unroll
  for (int j = 0; j < kN / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) h[j][e] *= decay;
#pragma unroll
  for (int k = 0; k < kSsdTile / 16; ++k) {
    uint32_t x[4];
    load_x_fragment<W>(x, x_tile, k);
    const float2 left[2] = {*reinterpret_cast<const float2*>(&f.left[16 * k + 2 * q]),
                            *reinterpret_cast<const float2*>(&f.left[16 * k + 8 + 2 * q])};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 v = unpack<X>(x[e]);
      x[e] = pack<X>(v.x * left[e / 2].x, v.y * left[e / 2].y);
    }
#pragma unroll
    for (int j = 0; j < kN / 16; ++j) {
      uint32_t b[4];
      ldmatrix_transposed(b, moved<kN>(B_at, j, k));
      mma<X>(h[2 * j], x, b[0], b[1]);
      mma<X>(h[2 * j + 1], x, b[2], b[3]);
    }
  }
}

// Calls f(value, offset) for the lane's elements of h^T that exist; offset counts from the head's [N, P].
template <int kN, int W, class F>
__device__ __forceinline__ void for_each_of_state(float (&h)[kN / 8][4], const SsdView& a,
                                                  const SsdChannels<W>& channels, F&& f) {
  const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int p = g + e / 2 * 8, n = 8 * j + 2 * q + e % 2;
      if (p < channels.p_count && n < a.N) f(h[j][e], int64_t{n} * a.P + channels.p_begin + p);
    }
}

// 16-byte accesses of x, B, C and y are aligned.
inline bool has_aligned_vectors(const SsdView& a) {
  return is_multiple(a.P, 8) && is_multiple(a.N, 8) && is_multiple(a.x_stride, 8) &&
         is_multiple(a.B_stride, 8) && is_multiple(a.C_stride, 8) && is_multiple(a.y_stride, 8) &&
         is_aligned(a.x) && is_aligned(a.B) && is_aligned(a.C) && is_aligned(a.y);
}

// Shared memory of chunk_scan, which takes the most. Two stages of tiles, one where N is large: two blocks a
// multiprocessor then copy and compute in turn.
struct SsdScanLayout {
  static constexpr int kScoreTiles = kSsdTile / 16 * (kSsdTile / 16 + 1) / 2;  // on and below the diagonal
  static constexpr int kScoreBytes = kScoreTiles * 512;                        // of a head
  int stages, B, C, x, stage, scores;                                          // offsets, and a stage's bytes
  __host__ __device__ constexpr SsdScanLayout(int n, int unit_rows)
      : stages(n > 128 ? 1 : 2),
        B(0),
        C(kSsdTile * n * 2),
        x(2 * C),
        stage(x + kSsdTile * unit_rows * 2),
        scores(stages * stage) {}
  int bytes(int heads) const {
    return scores + heads * (kScoreBytes + 2 * static_cast<int>(sizeof(SsdFactors)));
  }
};

// N in whole tiles, and the warps of a block: eight share B, C and the scores, where a group has as many
// units and registers and shared memory let two blocks stand side by side.
struct SsdTiling {
  int n, w;
  explicit SsdTiling(const SsdView& a) : n(a.N <= 32 ? 32 : a.N <= 64 ? 64 : a.N <= 128 ? 128 : 256), w(4) {
    if (n <= 128 && fits<8>(a)) w = 8;
  }
  template <int W>
  bool fits(const SsdView& a) const {
    const SsdUnits<W> units(a);
    return units.units_per_group >= W && units.most_heads() <= kSsdMostHeads &&
           SsdScanLayout(n, 16 * W).bytes(units.most_heads()) <= properties().max_shared_bytes;
  }
  int most_heads(const SsdView& a) const {
    return w == 8 ? SsdUnits<8>(a).most_heads() : SsdUnits<4>(a).most_heads();
  }
};

// The tensor cores take this call: 16-bit activations, steps forward (whose logarithm is taken), and tiles
// that fit into the card's shared memory.
inline bool takes_ssd_tiles(const SsdView& a) {
  if (a.dtype == DType::f32 || a.N > 256 || a.dt_min < 0) return false;
  const SsdTiling tiling(a);
  return SsdScanLayout(tiling.n, 16 * tiling.w).bytes(tiling.most_heads(a)) <= properties().max_shared_bytes;
}

// Calls f(X{}, N, W), the last two as integral constants.
template <class F>
void dispatch_ssd_tiles(const SsdView& a, F&& f) {
  const SsdTiling tiling(a);
  const auto with_type = [&](auto x_zero) {
    const auto with_rows = [&](auto n) {
      if constexpr (n.value <= 128) {
        if (tiling.w == 8) return f(x_zero, n, std::integral_constant<int, 8>{});
      }
      f(x_zero, n, std::integral_constant<int, 4>{});
    };
    switch (tiling.n) {
      case 32:
        return with_rows(std::integral_constant<int, 32>{});
      case 64:
        return with_rows(std::integral_constant<int, 64>{});
      case 128:
        return with_rows(std::integral_constant<int, 128>{});
      default:
        return with_rows(std::integral_constant<int, 256>{});
    }
  };
  a.dtype == DType::bf16 ? with_type(__nv_bfloat16{}) : with_type(__half{});
}

}  // namespace ssm::cuda
