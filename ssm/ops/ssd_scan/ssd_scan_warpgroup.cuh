// What a block of ssd_scan_warpgroup_cuda.cu works on, and its trades.
//
// A block walks a segment in tiles of kSsdTile tokens for two units of 64 channels, which share B and C. Its
// warp groups have three trades, which barriers in shared memory let run apart by as much as there is room:
// - the producer's warps copy tiles some stages ahead, or make the factors of dt and A;
// - a keeper a unit has the transposed state h^T [64, N] in f32 registers, and leaves it, rounded, in shared
//   memory before each tile:  h^T = decay h^T + (x left)^T B
// - a writer a unit makes y:  S = C B^T,  Y = reached (C h) + M x + D x, with
//   M[t, s] = S[t, s] dt'_s 2^(L_t - L_s) for s <= t in registers.
// chunk_state has no writers.
#pragma once

#include "ssm/ops/cuda/barrier.cuh"
#include "ssm/ops/cuda/wgmma.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_tiles.cuh"

namespace ssm::cuda::ssd_warpgroup {

inline constexpr int kGroup = 128;     // threads of a warp group
inline constexpr int kUnits = 2;       // of a block
inline constexpr int kUnitWidth = 64;  // channels
inline constexpr int kCopyWarps = 2;   // of the producer; its others, one a head, make factors
enum class Pass { state, scan };

// A block's threads and shared memory.
template <int kN, Pass kPass>
struct Layout {
  static constexpr bool kScan = kPass == Pass::scan;
  static constexpr int kThreads = (1 + (kScan ? 2 : 1) * kUnits) * kGroup;
  static constexpr int kRows = kN / 64 * kPanelBytes;  // of B, C or h^T
  static constexpr int kB = 0, kC = kRows;
  static constexpr int kX = kScan ? 2 * kRows : kRows;
  static constexpr int kStage = kX + kUnits * kPanelBytes;
  static constexpr int kStages = kScan && kN == 128 ? 3 : 4;
  // Registers of a thread, by trade; together no more than the launch gives.
  static constexpr int kOfProducer = kScan ? 32 : 72, kOfKeeper = kScan ? 112 : 216, kOfWriter = 112;
  static constexpr int kStates = kStages * kStage;                   // of each unit
  static constexpr int kY = kStates + (kScan ? kUnits * kRows : 0);  // of each unit
  static constexpr int kFactors = kY + (kScan ? kUnits * kPanelBytes : 0);
  static constexpr int kD = kFactors + kStages * kUnits * static_cast<int>(sizeof(SsdFactors));
  static constexpr int kFull = kD + kUnits * kUnitWidth * 4;  // barriers, one a stage
  static constexpr int kEmpty = kFull + kStages * 8;
  static constexpr int kReady = kEmpty + kStages * 8;  // one a unit: the state is there, and is used
  static constexpr int kUsed = kReady + kUnits * 8;
  static constexpr int kBytes = kUsed + kUnits * 8;
};

// Which channels a block has: two neighbouring units of one group.
struct Units {
  int per_head, per_group, blocks_per_group;
  __host__ __device__ explicit Units(const SsdView& a)
      : per_head(a.P / kUnitWidth),
        per_group(per_head * (a.H / a.G)),
        blocks_per_group((per_group + kUnits - 1) / kUnits) {}
};

struct Piece {
  Units units;
  int64_t number;
  Chunk segment;
  int group, first, count, first_head;  // units: the first one of all, and how many there are
  int length, tiles;
  __device__ explicit Piece(const SsdView& a) : units(a) {
    const int blocks = units.blocks_per_group * a.G, block = static_cast<int>(blockIdx.x % blocks);
    number = blockIdx.x / blocks;
    segment = chunk_of(a.batch, number, a.segment);
    group = block / units.blocks_per_group;
    const int in_group = block % units.blocks_per_group * kUnits;
    first = group * units.per_group + in_group;
    count = min(kUnits, units.per_group - in_group);
    first_head = first / units.per_head;
    length = static_cast<int>(segment.end - segment.begin);
    tiles = (length + kSsdTile - 1) / kSsdTile;
  }
  __device__ int head(int unit) const { return (first + unit) / units.per_head; }
  __device__ int heads() const { return head(count - 1) - first_head + 1; }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ SsdFactors& factors_of(unsigned char* factors, int stage, int head) {
  return reinterpret_cast<SsdFactors*>(factors)[stage * kUnits + head];
}

// Tiles of B, C and x, as many stages ahead as there are.
template <class X, int kN, Pass kPass>
__device__ __forceinline__ void copy_tiles(const SsdView& a, const Piece& piece, uint32_t base, int thread) {
  using L = Layout<kN, kPass>;
  constexpr int kRowsAtOnce = 32 * kCopyWarps / 8;
  const int row = thread / 8, vector = thread % 8;
  const auto first = [&](const void* from, int64_t stride, int column) {
    return static_cast<const X*>(from) + (piece.segment.begin + row) * stride + column + vector * 8;
  };
  const X* x = first(a.x, a.x_stride, piece.first * kUnitWidth);
  const X* B = first(a.B, a.B_stride, piece.group * a.N);
  const X* C = first(a.C, a.C_stride, piece.group * a.N);
  const auto publish = [&](int tile) {
    publish_to_products();
    __syncwarp();
    if (thread % 32 == 0) arrive(base + L::kFull + tile % L::kStages * 8);
  };
  for (int tile = 0; tile < piece.tiles; ++tile) {
    const int stage = tile % L::kStages, rows = min(kSsdTile, piece.length - tile * kSsdTile);
    if (tile >= L::kStages) wait_for_phase(base + L::kEmpty + stage * 8, (tile / L::kStages + 1) & 1);
    const uint32_t to = base + stage * L::kStage + panel_offset(row, vector);
    // Unrolled little: the producer has few registers.
    const auto copy = [&](uint32_t panel, const X* from, int64_t stride) {
      if (rows == kSsdTile) {
#pragma unroll 4
        for (int i = 0; i < kSsdTile; i += kRowsAtOnce, from += kRowsAtOnce * stride)
          copy_async(panel + i * 128, from, true);
      } else {
#pragma unroll 1
        for (int i = 0; i < kSsdTile; i += kRowsAtOnce, from += kRowsAtOnce * stride)
          copy_async(panel + i * 128, from, row + i < rows);
      }
    };
#pragma unroll 1
    for (int i = 0; i < kN / 64; ++i) {
      copy(to + L::kB + i * kPanelBytes, B + i * 64, a.B_stride);
      if (kPass == Pass::scan) copy(to + L::kC + i * kPanelBytes, C + i * 64, a.C_stride);
    }
    for (int i = 0; i < piece.count; ++i) copy(to + L::kX + i * kPanelBytes, x + i * kUnitWidth, a.x_stride);
    commit_copies();
    x += kSsdTile * a.x_stride, B += kSsdTile * a.B_stride, C += kSsdTile * a.C_stride;
    if (tile > 0) {
      wait_for_copies<1>();
      publish(tile - 1);
    }
  }
  wait_for_copies<0>();
  publish(piece.tiles - 1);
}

// The factors of dt and A, a warp a head.
template <class X, int kN, Pass kPass>
__device__ __forceinline__ void make_factors(const SsdView& a, const Piece& piece, unsigned char* shared) {
  using L = Layout<kN, kPass>;
  const uint32_t base = shared_address(shared);
  SsdFactorMaker<X> maker(a, piece.segment.begin, piece.first_head, piece.heads());
  if (!maker.active) return;
  maker.fetch(a, 0, piece.length);
  for (int tile = 0; tile < piece.tiles; ++tile) {
    const int stage = tile % L::kStages;
    if (tile >= L::kStages) wait_for_phase(base + L::kEmpty + stage * 8, (tile / L::kStages + 1) & 1);
    maker.make(a, &factors_of(shared + L::kFactors, stage, 0));
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(base + L::kFull + stage * 8);
    if ((tile + 1) * kSsdTile < piece.length) maker.fetch(a, (tile + 1) * kSsdTile, piece.length);
  }
}

// What keepers and writers know of their unit. Lanes have rows g, g + 8 of their warp's 16 and columns 2q, 2q
// + 1 of each run of eight, q = lane % 4 and g = lane / 4.
template <class X, int kN, Pass kPass>
struct Unit {
  using L = Layout<kN, kPass>;
  const SsdView& a;
  const Piece& piece;
  unsigned char* const shared;
  const int unit, head, warp, lane, g, q;
  const uint32_t base,
      row_offset;  // this lane's row of fragments that ldmatrix and stmatrix move, in a panel

  __device__ __forceinline__ Unit(const SsdView& view, const Piece& of, unsigned char* in, int number)
      : a(view),
        piece(of),
        shared(in),
        unit(number),
        head(of.head(number)),
        warp(threadIdx.x % kGroup / 32),
        lane(threadIdx.x % 32),
        g(lane / 4),
        q(lane % 4),
        base(shared_address(in)),
        row_offset((16 * warp + lane % 16) * 128) {}

  __device__ __forceinline__ uint32_t stage_at(int tile) const {
    return base + tile % L::kStages * L::kStage;
  }
  __device__ __forceinline__ uint32_t x_at(int tile) const {
    return stage_at(tile) + L::kX + unit * kPanelBytes;
  }
  __device__ __forceinline__ uint32_t state_at() const { return base + L::kStates + unit * L::kRows; }
  // Columns [16 k, 16 k + 16) of the warp's rows, for ldmatrix and stmatrix.
  __device__ __forceinline__ uint32_t fragment_at(uint32_t panels, int k) const {
    return panels + k / 4 * kPanelBytes + row_offset + (((k % 4 * 2 + lane / 16) ^ (lane & 7)) * 16);
  }
  __device__ __forceinline__ const SsdFactors& factors(int tile) const {
    return factors_of(shared + L::kFactors, tile % L::kStages, head - piece.first_head);
  }
  __device__ __forceinline__ void wait_for_tile(int tile) const {
    wait_for_phase(base + L::kFull + tile % L::kStages * 8, tile / L::kStages & 1);
  }
  // The warp arrives.
  __device__ __forceinline__ void arrive_at(int barrier) const {
    __syncwarp();
    if (lane == 0) arrive(base + barrier);
  }
  __device__ __forceinline__ void leave_tile(int tile) const { arrive_at(L::kEmpty + tile % L::kStages * 8); }
};

template <class X, int kN, Pass kPass>
struct Keeper : Unit<X, kN, kPass> {
  using L = Layout<kN, kPass>;
  using Base = Unit<X, kN, kPass>;
  using Base::a, Base::piece, Base::unit, Base::head, Base::warp, Base::lane, Base::q, Base::base;
  static constexpr int kWords = kN / 2;
  float h[kWords];  // channels along the warp's rows, states along the columns

  using Base::Base;

  template <class F>
  __device__ __forceinline__ void for_each_of_state(F&& f) {
    const int64_t P = a.P;
    int64_t at = 2 * q * P + (piece.first + unit) % piece.units.per_head * kUnitWidth + 16 * warp + Base::g;
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      f(h[i], at), f(h[i + 1], at + P), f(h[i + 2], at + 8), f(h[i + 3], at + P + 8);
      at += 8 * P;
    }
  }

  // h^T, rounded, to where the writer's products read it.
  __device__ __forceinline__ void publish() const {
#pragma unroll
    for (int k = 0; k < kN / 16; ++k) {
      uint32_t words[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) words[e] = pack<X>(h[8 * k + 2 * e], h[8 * k + 2 * e + 1]);
      stmatrix(Base::fragment_at(Base::state_at(), k), words);
    }
    publish_to_products();
    Base::arrive_at(L::kReady + unit * 8);
  }

  // (x left)^T of a tile: channels along rows, tokens along columns.
  __device__ __forceinline__ void load_decayed(uint32_t (&to)[4][4], int tile) const {
    Base::wait_for_tile(tile);
    const uint32_t x = Base::x_at(tile);
    const SsdFactors& f = Base::factors(tile);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      ldmatrix_transposed(to[k],
                          x + panel_offset(16 * k + lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 left = *reinterpret_cast<const float2*>(&f.left[16 * k + e / 2 * 8 + 2 * q]);
        const float2 v = unpack<X>(to[k][e]);
        to[k][e] = pack<X>(v.x * left.x, v.y * left.y);
      }
    }
  }

  // Over tiles one after another, f(tile, decay) behind each.
  template <class F>
  __device__ __forceinline__ void advance(F&& f) {
    for (int tile = 0; tile < piece.tiles; ++tile) {
      uint32_t decayed[4][4];
      load_decayed(decayed, tile);
      const float decay = Base::factors(tile).decay;
#pragma unroll
      for (int i = 0; i < kWords; ++i) h[i] *= decay;
      const uint64_t B = panels_at(Base::stage_at(tile) + L::kB);
      fence_products();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply_down<X>(h, decayed[k], rows_from(B, k));
      commit_products();
      wait_for_products<0>();
      settle(h);
      settle(decayed);
      Base::leave_tile(tile);
      f(tile, decay);
    }
  }

  __device__ __forceinline__ void scan() {
    const float* const from = first_state(a, piece.segment, piece.number, head);
    for_each_of_state([&](float& v, int64_t at) { v = from ? from[at] : 0.0f; });
    publish();
    advance([&](int tile, float) {
      if (tile + 1 == piece.tiles) return;
      wait_for_phase(base + L::kUsed + unit * 8, tile & 1);
      publish();
    });
    if (float* const to = last_state(a, piece.segment, piece.number, head))
      for_each_of_state([&](float& v, int64_t at) { to[at] = v; });
  }

  __device__ __forceinline__ void find_state() {
    float decay = 1.0f;
#pragma unroll
    for (int i = 0; i < kWords; ++i) h[i] = 0.0f;
    advance([&](int, float of_tile) { decay *= of_tile; });
    float* const to = in_workspace(a, piece.number, head);
    for_each_of_state([&](float& v, int64_t at) { to[at] = v; });
    if (threadIdx.x % kGroup == 0) a.segment_decays[piece.number * a.H + head] = decay;
  }
};

template <class X, int kN>
struct Writer : Unit<X, kN, Pass::scan> {
  using L = Layout<kN, Pass::scan>;
  using Base = Unit<X, kN, Pass::scan>;
  using Base::a, Base::piece, Base::unit, Base::warp, Base::lane, Base::g, Base::q, Base::base, Base::shared;
  float scores[32];  // C B^T of the tile that comes next

  using Base::Base;

  __device__ __forceinline__ void start_scores(int tile) {
    Base::wait_for_tile(tile);
    const uint64_t B = panels_at(Base::stage_at(tile) + L::kB), C = panels_at(Base::stage_at(tile) + L::kC);
    fence_products();
#pragma unroll
    for (int k = 0; k < kN / 16; ++k)
      multiply_panels<X>(scores, columns_from(C, k), columns_from(B, k), k > 0);
    commit_products();
  }

  // M of a tile from its scores, as left operand.
  __device__ __forceinline__ void mask_and_decay(uint32_t (&to)[4][4], const SsdFactors& f) const {
    const int t = 16 * warp + g;
    const float log[2] = {f.log[t], f.log[t + 8]};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int s = 8 * j + 2 * q;
      const float2 source = *reinterpret_cast<const float2*>(&f.source[s]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float low = scores[4 * j + 2 * i] * exp2_fast(log[i] + source.x);
        const float high = scores[4 * j + 2 * i + 1] * exp2_fast(log[i] + source.y);
        to[j / 2][j % 2 * 2 + i] = pack<X>(s <= t + 8 * i ? low : 0.0f, s < t + 8 * i ? high : 0.0f);
      }
    }
  }

  // y = Y + D x, through shared memory of the warp.
  __device__ __forceinline__ void write(const float (&Y)[32], int tile) const {
    const float* D = reinterpret_cast<const float*>(shared + L::kD) + unit * kUnitWidth + 2 * q;
    const int place = L::kY + unit * kPanelBytes;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t x[4];
      ldmatrix(x, Base::fragment_at(Base::x_at(tile), k));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 d = *reinterpret_cast<const float2*>(D + 16 * k + e / 2 * 8), v = unpack<X>(x[e]);
        x[e] = pack<X>(fmaf(d.x, v.x, Y[8 * k + 2 * e]), fmaf(d.y, v.y, Y[8 * k + 2 * e + 1]));
      }
      stmatrix(Base::fragment_at(base + place, k), x);
    }
    Base::leave_tile(tile);  // x is read, and the warp's part of y is there
    const int rows = piece.length - tile * kSsdTile;
    X* y = static_cast<X*>(a.y) + (piece.segment.begin + tile * kSsdTile) * a.y_stride +
           (piece.first + unit) * kUnitWidth + lane % 8 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 16 * warp + 4 * i + lane / 8;
      const uint4 v = *reinterpret_cast<const uint4*>(shared + place + panel_offset(t, lane % 8));
      if (t < rows) *reinterpret_cast<uint4*>(y + t * a.y_stride) = v;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void scan_tile(int tile) {
    const uint64_t C = panels_at(Base::stage_at(tile) + L::kC), state = panels_at(Base::state_at()),
                   x = panels_at(Base::x_at(tile));
    const SsdFactors& f = Base::factors(tile);
    float Y[32];
    uint32_t M[4][4];
    wait_for_phase(base + L::kReady + unit * 8, tile & 1);
    fence_products();
#pragma unroll
    for (int k = 0; k < kN / 16; ++k)
      multiply_panels<X>(Y, columns_from(C, k), columns_from(state, k), k > 0);
    commit_products();
    mask_and_decay(M, f);
    wait_for_products<0>();
    settle(Y);
    Base::arrive_at(L::kUsed + unit * 8);
    const float reached[2] = {f.reached[16 * warp + g], f.reached[16 * warp + g + 8]};
#pragma unroll
    for (int i = 0; i < 32; ++i) Y[i] *= reached[i % 4 / 2];
    fence_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_down<X>(Y, M[k], rows_from(x, k));
    commit_products();
    // The next tile's scores are made while this one's y is written; the last one's again, for a product
    // under a condition would wait for those before it.
    start_scores(min(tile + 1, piece.tiles - 1));
    wait_for_products<1>();
    settle(Y);
    settle(M);
    write(Y, tile);
    wait_for_products<0>();
    settle(scores);
  }

  __device__ __forceinline__ void scan() {
    const int column = threadIdx.x % kGroup;
    if (column < kUnitWidth) {
      const int64_t p = (piece.first + unit) * kUnitWidth + column;
      reinterpret_cast<float*>(shared + L::kD)[unit * kUnitWidth + column] =
          a.D ? a.D[a.D_by_channel ? p : Base::head] : 0.0f;
    }
    sync_threads(1 + unit, kGroup);
    start_scores(0);
    wait_for_products<0>();
    settle(scores);
    for (int tile = 0; tile < piece.tiles; ++tile) scan_tile(tile);
  }
};

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ssm::cuda::ssd_warpgroup
