// chunk_scan on the tensor cores: y of a segment from the state it begins with, and at the end of a sequence
// the state it leaves. For each tile of tokens, with the transposed state h^T in registers:
//
//   S = C B^T                            (bmm; the warps share it among the block's heads)
//   Y^T = (h^T C^T) reached + x^T M^T    M[t, s] = S[t, s] dt'_s 2^(L_t - L_s) for s <= t
//   h^T = decay h^T + (x left)^T B
//
// M goes through shared memory as 16-bit floats: ten 16x16 tiles on and below the diagonal.
#include <algorithm>

#include "ssm/ops/ssd_scan/ssd_scan_tiles.cuh"

namespace ssm::cuda {
namespace {

constexpr int kBlocks = kSsdTile / 16;  // of 16 tokens along a side of M
using Layout = SsdScanLayout;

// A 16x16 tile of scores, the two vectors of a row permuted so that eight rows lie in different banks.
__device__ __forceinline__ uint32_t score_offset(int t_block, int s_block, int row, int vector) {
  return static_cast<uint32_t>((t_block * (t_block + 1) / 2 + s_block) * 512 + row * 32 +
                               (vector ^ (row / 4 % 2)) * 16);
}

// Scores of 16 tokens t against `count` blocks of 16 tokens s from `first` on, masked and decayed for each of
// the block's heads.
template <class X, int kN, int kMost>
__device__ __forceinline__ void compute_scores(uint32_t C_tile, uint32_t B_tile, const SsdFactors* factors,
                                               int heads, unsigned char* scores, int t_block, int first,
                                               int count) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const uint32_t C_at = C_tile + tile_offset<kN>(lane % 16, lane / 16);
  const uint32_t B_at = B_tile + tile_offset<kN>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  float s[kMost][2][4] = {};
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t c[4];
    ldmatrix(c, moved<kN>(C_at, k, t_block));
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= count) break;
      uint32_t b[4];
      ldmatrix(b, moved<kN>(B_at, k, first + j));
      mma<X>(s[j][0], c, b[0], b[1]);
      mma<X>(s[j][1], c, b[2], b[3]);
    }
  }
#pragma unroll 1
  for (int head = 0; head < heads; ++head) {
    const SsdFactors& f = factors[head];
    unsigned char* const to = scores + head * Layout::kScoreBytes;
    const float log_t[2] = {f.log[16 * t_block + g], f.log[16 * t_block + g + 8]};
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      if (j >= count) break;
      const bool diagonal = first + j == t_block;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = 8 * i + 2 * q, at = 16 * (first + j) + column;
        const float2 source = *reinterpret_cast<const float2*>(&f.source[at]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = g + 8 * r;
          float low = s[j][i][2 * r] * exp2_fast(log_t[r] + source.x);
          float high = s[j][i][2 * r + 1] * exp2_fast(log_t[r] + source.y);
          if (diagonal && column > row) low = 0;
          if (diagonal && column + 1 > row) high = 0;
          *reinterpret_cast<uint32_t*>(to + score_offset(t_block, first + j, row, i) + 4 * q) =
              pack<X>(low, high);
        }
      }
    }
  }
}

// Writes 8 tokens of Y^T: the lane's words hold channels 2q, 2q + 1 of both runs of eight, of token g after
// the transposition, and are exchanged so that each lane stores four channels.
template <class X>
__device__ __forceinline__ void store_y(X* to, uint32_t low, uint32_t high, int p_count, bool vectors) {
  const int q = threadIdx.x % 4;
  if (!vectors) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = 8 * i + 2 * q;
      const float2 v = unpack<X>(i ? high : low);
      if (p < p_count) to[p] = from_f32<X>(v.x);
      if (p + 1 < p_count) to[p + 1] = from_f32<X>(v.y);
    }
    return;
  }
  const uint32_t other = __shfl_xor_sync(0xffffffffu, q % 2 ? low : high, 1);
  const int p = q % 2 * 8 + q / 2 * 4;
  if (p < p_count) *reinterpret_cast<uint2*>(to + p) = q % 2 ? uint2{other, high} : uint2{low, other};
}

// Y^T of the warp's channels, 32 tokens at a time, and its way to memory.
template <class X, int kN, int W>
__device__ __forceinline__ void compute_y(const float (&h)[kN / 8][4], const SsdView& a, X* y,
                                          const float (&D)[2], const SsdFactors& f, uint32_t C_tile,
                                          uint32_t x_tile, uint32_t scores, int rows, int p_count,
                                          bool vectors) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int b_row = lane % 8 + lane / 16 * 8, b_vector = lane / 8 % 2;
  const uint32_t C_at = C_tile + tile_offset<kN>(b_row, b_vector);
  const uint32_t scores_at = scores + score_offset(0, 0, b_row, b_vector);
  y += g * a.y_stride;
#pragma unroll 1
  for (int half = 0; half < kBlocks; half += 2) {
    if (half * 16 >= rows) break;
    float acc[4][4] = {};
#pragma unroll
    for (int k = 0; k < kN / 16; ++k) {
      uint32_t state[4];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        state[e] = pack<X>(h[2 * k + e / 2][e % 2 * 2], h[2 * k + e / 2][e % 2 * 2 + 1]);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        uint32_t c[4];
        ldmatrix(c, moved<kN>(C_at, k, half + t));
        mma<X>(acc[2 * t], state, c[0], c[1]);
        mma<X>(acc[2 * t + 1], state, c[2], c[3]);
      }
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 reached = *reinterpret_cast<const float2*>(&f.reached[16 * half + 8 * t + 2 * q]);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[t][e] *= e % 2 ? reached.y : reached.x;
    }
#pragma unroll
    for (int k = 0; k < kBlocks; ++k) {
      if (k > half + 1) break;
      uint32_t x[4];
      load_x_fragment<W>(x, x_tile, k);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        if (k > half + t) continue;
        uint32_t m[4];
        ldmatrix(m, scores_at + score_offset(half + t, k, 0, 0));
        mma<X>(acc[2 * t], x, m[0], m[1]);
        mma<X>(acc[2 * t + 1], x, m[2], m[3]);
        if (k != half + t) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) {  // x itself is here, in the places of y
          const float2 v = unpack<X>(x[e]);
          float(&to)[4] = acc[2 * t + e / 2];
          to[e % 2 * 2] = fmaf(D[e % 2], v.x, to[e % 2 * 2]);
          to[e % 2 * 2 + 1] = fmaf(D[e % 2], v.y, to[e % 2 * 2 + 1]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int row = 16 * half + 8 * t + g;
      store_y<X>(y, transposed(pack<X>(acc[t][0], acc[t][1])), transposed(pack<X>(acc[t][2], acc[t][3])),
                 row < rows ? p_count : 0, vectors);
      y += 8 * a.y_stride;
    }
  }
}

// One block a segment and W units of channels.
template <class X, int kN, int W>
__global__ void __launch_bounds__(32 * W, 2) ssd_scan_chunk_scan_kernel(const SsdView a, bool vectors) {
  constexpr Layout L(kN, 16 * W);
  constexpr int kScoreBytes = Layout::kScoreBytes;
  extern __shared__ __align__(1024) unsigned char shared[];
  grid_dependency_wait();
  let_next_start();
  const SsdUnits<W> units(a);
  const int blocks = units.blocks_per_group * a.G;
  const int64_t number = blockIdx.x / blocks;
  const Chunk segment = chunk_of(a.batch, number, a.segment);
  if (segment.sequence < 0) return;
  const SsdChannels<W> channels(a, units, static_cast<int>(blockIdx.x % blocks));
  SsdChannelSource<W, X> x(a, units, channels);
  SsdStateSource<kN, X> B(a, a.B, channels.group), C(a, a.C, channels.group);
  x.from += segment.begin * a.x_stride, B.from += segment.begin * a.B_stride;
  C.from += segment.begin * a.C_stride;
  unsigned char* const scores = shared + L.scores;
  SsdFactors* const factors = reinterpret_cast<SsdFactors*>(scores + channels.heads * kScoreBytes);

  const int length = static_cast<int>(segment.end - segment.begin);
  const auto load = [&](int first, int stage) {
    unsigned char* const to = shared + stage * L.stage;
    const int rows = min(kSsdTile, length - first);
    load_tile<W, kN>(to + L.B, B.from + first * a.B_stride, a.B_stride, rows, B.columns, vectors);
    load_tile<W, kN>(to + L.C, C.from + first * a.C_stride, a.C_stride, rows, C.columns, vectors);
    load_tile<W, 16 * W>(to + L.x, x.from + first * a.x_stride, a.x_stride, rows, x.columns, vectors);
    commit_copies();
  };
  SsdFactorMaker<X> maker(a, segment.begin, channels.first_head, channels.heads);
  load(0, 0);
  maker.fetch(a, 0, length);

  float h[kN / 8][4] = {};
  if (const float* const from = first_state(a, segment, number, channels.head))
    for_each_of_state<kN, W>(h, a, channels, [&](float& v, int64_t at) { v = from[at]; });
  float D[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int p = 8 * i + threadIdx.x % 32 / 4;
    if (a.D && p < channels.p_count)
      D[i] = a.D[a.D_by_channel ? int64_t{channels.head} * a.P + channels.p_begin + p : channels.head];
  }
  X* const y =
      static_cast<X*>(a.y) + segment.begin * a.y_stride + int64_t{channels.head} * a.P + channels.p_begin;
  maker.make(a, factors);
  if (kSsdTile < length) maker.fetch(a, kSsdTile, length);

  const int own = channels.head - channels.first_head, warp = threadIdx.x / 32;
  int stage = 0;
  for (int first = 0; first < length; first += kSsdTile, stage ^= 1) {
    const int next = first + kSsdTile, rows = min(kSsdTile, length - first);
    wait_for_copies<0>();
    __syncthreads();
    if (next < length) {
      if constexpr (L.stages == 2) load(next, stage ^ 1);
      maker.make(a, factors + (stage ^ 1) * channels.heads);
      if (next + kSsdTile < length) maker.fetch(a, next + kSsdTile, length);
    }
    const SsdFactors* const now = factors + stage * channels.heads;
    const uint32_t tiles = shared_address(shared + (L.stages == 2 ? stage : 0) * L.stage);
    // Ten tiles of scores: (row, first column, how many) of each warp. Eight warps take up to two, and the
    // first ones, who make the factors, less; four take three, the first one two in two turns.
    const auto part = [&](int t_block, int s_block, int count) {
      compute_scores<X, kN, W == 8 ? 2 : 3>(tiles + L.C, tiles + L.B, now, channels.heads, scores, t_block,
                                            s_block, count);
    };
    if constexpr (W == 8) {
      const int at = 4 * warp;
      if (warp > 0) part(0x33221100 >> at & 15, 0x20201000 >> at & 15, 0x22121110 >> at & 15);
    } else {
#pragma unroll 1
      for (int turn = 0; turn < (warp == 0 ? 2 : 1); ++turn)
        part(turn ? kBlocks - 1 : warp, turn ? kBlocks - 1 : 0, turn ? 1 : min(warp + 1, kBlocks - 1));
    }
    __syncthreads();
    if (channels.p_count > 0) {
      compute_y<X, kN, W>(h, a, y + first * a.y_stride, D, now[own], tiles + L.C, tiles + L.x,
                          shared_address(scores) + own * kScoreBytes, rows, channels.p_count, vectors);
      update_state<X, kN, W>(h, now[own], tiles + L.x, tiles + L.B);
    }
    if (L.stages == 1 && next < length) {
      __syncthreads();
      load(next, 0);
    }
  }
  // Looked up again, so that it does not lie in registers all the while.
  if (float* const to = last_state(a, chunk_of(a.batch, number, a.segment), number, channels.head))
    for_each_of_state<kN, W>(h, a, channels, [&](float& v, int64_t at) { to[at] = v; });
}

template <class X, int kN, int W>
auto kernel_of() {
  const auto kernel = ssd_scan_chunk_scan_kernel<X, kN, W>;
  static const bool allowed = allow_shared_bytes(
      kernel, std::min(Layout(kN, 16 * W).bytes(kSsdMostHeads), properties().max_shared_bytes));
  static_cast<void>(allowed);
  return kernel;
}

}  // namespace

SsdBlocks ssd_chunk_scan_blocks(const SsdView& a) {
  SsdBlocks result{};
  dispatch_ssd_tiles(a, [&](auto x_zero, auto n, auto w) {
    const SsdUnits<w.value> units(a);
    int resident = 0;
    SSM_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &resident, kernel_of<decltype(x_zero), n.value, w.value>(), 32 * w.value,
        Layout(n.value, 16 * w.value).bytes(units.most_heads())));
    result = {int64_t{units.blocks_per_group} * a.G,
              int64_t{std::max(1, resident)} * properties().multiprocessors};
  });
  return result;
}

void launch_ssd_chunk_scan(const SsdView& a) {
  dispatch_ssd_tiles(a, [&](auto x_zero, auto n, auto w) {
    const SsdUnits<w.value> units(a);
    const auto blocks =
        static_cast<unsigned>(chunk_numbers(a.batch, a.segment) * units.blocks_per_group * a.G);
    launch({.grid = dim3(blocks),
            .block = dim3(32 * w.value),
            .shared_bytes = static_cast<size_t>(Layout(n.value, 16 * w.value).bytes(units.most_heads())),
            .overlaps_previous = true},
           kernel_of<decltype(x_zero), n.value, w.value>(), a, has_aligned_vectors(a));
  });
}

}  // namespace ssm::cuda
