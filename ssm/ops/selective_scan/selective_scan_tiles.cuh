// What a block of the scan over many tokens (selective_scan_forward_cuda.cu) works on, and its helpers: the
// warps that copy, prepare and finish tiles.
#pragma once

#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/selective_scan/selective_scan_cuda.cuh"

namespace ssm::cuda::selective {

inline constexpr int kTrade = 128;       // threads of each trade
inline constexpr int kBlockStates = 16;  // of a channel, scanned at once; more are taken in turn
inline constexpr int kLanes = 4;         // that share two channels
inline constexpr int kStates = kBlockStates / kLanes;  // of a thread, for each of its two channels
inline constexpr int kWidth = kTrade / kLanes * 2;     // channels of a block
inline constexpr int kRows = 16;                       // of a tile
inline constexpr int kStages = 5;  // the tiles being finished, scanned and prepared, and two on their way
inline constexpr int kPitch = kWidth + 8;   // of sums: rows that a warp writes start in different banks
inline constexpr float kForgotten = 48.0f;  // binary orders of magnitude

enum class Pass { carry, whole };

struct ForwardArgs {
  SelectiveScanOperands s;
  int64_t channel_blocks;
  int64_t chunk_length;
  bool split;                // a chunk's first state stands in `carry`
  bool vectors, BC_vectors;  // rows of u, delta, z, y / of B, C can be accessed 16 bytes at a time
  float* carry;              // [chunk numbers, N, E] or null
  float* delta_sum;          // [chunk numbers, E] or null
};

template <class T>
struct Tiles {
  T raw[kStages][3][kRows][kWidth];           // u, delta, z
  T raw_BC[kStages][2][kRows][kBlockStates];  // B, C
  float4 delta[2][kRows / 4][kWidth];         // of four tokens: delta'
  float4 delta_u[2][kRows / 4][kWidth];       // delta' u
  float BC[2][kRows][kLanes][2][kStates];
  float y[2][kRows][kPitch];  // sum_n C h
};
static_assert(sizeof(Tiles<float>) <= 99 * 1024);  // what a block may have on every card

inline constexpr int kBlocksAtOnce = 2;  // of a multiprocessor; three have too few registers

// [rows, columns] of a matrix into [kRows, kColumns] of shared memory, zeros around them, element by element.
template <int kColumns, class T>
__device__ __forceinline__ void copy_unaligned(T* to, const void* from, int64_t stride, int rows, int columns,
                                               int thread) {
#pragma unroll 1
  for (int i = thread; i < kRows * kColumns; i += kTrade) {
    const int t = i / kColumns, c = i % kColumns;
    to[i] = t < rows && c < columns ? static_cast<const T*>(from)[t * stride + c] : from_f32<T>(0.0f);
  }
}

__device__ __forceinline__ int stage_of(int tile) {
  return static_cast<int>(static_cast<unsigned>(tile) % kStages);
}

__device__ __forceinline__ float element(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// What a block works on.
struct Piece {
  int64_t number;  // of the chunk
  Chunk chunk;
  bool last;   // of its sequence
  int64_t e0;  // first channel
  int width;   // channels
  int tiles;
  int last_rows;  // of the last tile
  __device__ Piece(const ForwardArgs& a)
      : number(blockIdx.x / a.channel_blocks),
        chunk(chunk_of(a.s.batch, number, a.chunk_length)),
        last(chunk.sequence >= 0 && chunk.end == a.s.batch.offsets[chunk.sequence + 1]),
        e0(blockIdx.x % a.channel_blocks * kWidth),
        width(static_cast<int>(min(int64_t{kWidth}, a.s.E - e0))),
        tiles(static_cast<int>((chunk.end - chunk.begin + kRows - 1) / kRows)),
        last_rows(static_cast<int>(chunk.end - chunk.begin - (tiles - 1) * int64_t{kRows})) {}
  __device__ int64_t first_row(int tile) const { return chunk.begin + int64_t{tile} * kRows; }
};

// A helper thread copies the same 16 bytes of each tile's rows and has the same pair of channels throughout.
// Tiles are counted in the order in which they are scanned.
template <class T, Pass kPass, bool kMany>
struct Helper {
  static constexpr bool kWhole = kPass == Pass::whole;
  static constexpr int V = 16 / sizeof(T);
  static constexpr int kPairs = kWidth / 2;
  static constexpr int kCopies = kRows * kWidth / V / kTrade;  // of a thread, an operand and tile
  static constexpr int kCopyRows = kRows / kCopies;            // between them
  static constexpr int kBCCopies = kRows * kBlockStates / V;   // threads that copy B; as many copy C
  static constexpr int kStep = kWhole ? kRows : -kRows;

  const ForwardArgs& a;
  const Piece& piece;
  Tiles<T>& tiles;
  const int thread, row, c;                  // of this thread's pairs
  const int copy_row, copy_c, BC_row, BC_c;  // of its copies
  const T *u, *delta, *z, *BC;               // where they come from in the next tile
  int64_t BC_stride;
  T* y;  // of the next tile to finish
  uint32_t raw, raw_BC;
  float bias[2], D[2];

  __device__ __forceinline__ Helper(const ForwardArgs& args, const Piece& of, Tiles<T>& in)
      : a(args),
        piece(of),
        tiles(in),
        thread(threadIdx.x - kTrade),
        row(thread / kPairs),
        c(thread % kPairs * 2),
        copy_row(thread / (kWidth / V)),
        copy_c(thread % (kWidth / V) * V),
        BC_row(thread % kBCCopies / (kBlockStates / V)),
        BC_c(thread % (kBlockStates / V) * V) {
    const SelectiveScanOperands& s = a.s;
    const int64_t t = piece.first_row(kWhole ? 0 : piece.tiles - 1);
    const auto first = [&](const void* x, int64_t stride) {
      return static_cast<const T*>(x) + (t + copy_row) * stride + piece.e0 + copy_c;
    };
    u = first(s.u, s.u_stride), delta = first(s.delta, s.delta_stride);
    z = s.z ? first(s.z, s.z_stride) : nullptr;
    const bool is_C = thread >= kBCCopies;
    BC_stride = is_C ? s.C_stride : s.B_stride;
    BC = static_cast<const T*>(is_C ? s.C : s.B) + (t + BC_row) * BC_stride + BC_c;
    y = static_cast<T*>(s.y) + (t + row) * s.y_stride + piece.e0 + c;
    raw = shared_address(&tiles.raw[0][0][copy_row][copy_c]);
    raw_BC = shared_address(&tiles.raw_BC[0][is_C ? 1 : 0][BC_row][BC_c]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      bias[j] = s.delta_bias && c + j < piece.width ? s.delta_bias[piece.e0 + c + j] : 0.0f;
      D[j] = s.D && c + j < piece.width ? s.D[piece.e0 + c + j] : 0.0f;
    }
  }

  __device__ __forceinline__ int rows_of(int i) const {
    return i == (kWhole ? piece.tiles - 1 : 0) ? piece.last_rows : kRows;
  }

  __device__ __forceinline__ void copy(const T*& from, int64_t stride, int which, int stage, int rows) const {
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      const bool there = copy_row + k * kCopyRows < rows && copy_c < piece.width;
      const uint32_t at = (((stage * 3 + which) * kRows + k * kCopyRows) * kWidth) * sizeof(T);
      copy_async(raw + at, there ? static_cast<const void*>(from + k * kCopyRows * stride) : a.s.u, there);
    }
    from += kStep * stride;
  }

  // Called for one tile after another.
  __device__ __forceinline__ void copy_in(int i) {
    const SelectiveScanOperands& s = a.s;
    if (i < piece.tiles) {
      const int rows = rows_of(i), stage = stage_of(i);
      const int64_t t = piece.first_row(kWhole ? i : piece.tiles - 1 - i);
      if (a.vectors) {
        copy(u, s.u_stride, 0, stage, rows);
        copy(delta, s.delta_stride, 1, stage, rows);
        if (kWhole && s.z) copy(z, s.z_stride, 2, stage, rows);
      } else {
        const auto copy_slowly = [&](int which, const void* x, int64_t stride) {
          copy_unaligned<kWidth>(tiles.raw[stage][which][0], static_cast<const T*>(x) + t * stride + piece.e0,
                                 stride, rows, piece.width, thread);
        };
        copy_slowly(0, s.u, s.u_stride);
        copy_slowly(1, s.delta, s.delta_stride);
        if (kWhole && s.z) copy_slowly(2, s.z, s.z_stride);
      }
      if (kMany) {
      } else if (a.BC_vectors) {
        if (thread < (kWhole ? 2 : 1) * kBCCopies) {
          const bool there = BC_row < rows && BC_c < s.N;
          copy_async(raw_BC + stage * static_cast<uint32_t>(sizeof(tiles.raw_BC[0])), there ? BC : s.B,
                     there);
          BC += kStep * BC_stride;
        }
      } else {
        copy_unaligned<kBlockStates>(tiles.raw_BC[stage][0][0], static_cast<const T*>(s.B) + t * s.B_stride,
                                     s.B_stride, rows, s.N, thread);
        if (kWhole) {
          copy_unaligned<kBlockStates>(tiles.raw_BC[stage][1][0], static_cast<const T*>(s.C) + t * s.C_stride,
                                       s.C_stride, rows, s.N, thread);
        }
      }
    }
    commit_copies();
  }

  // After the sequence's end delta is 0, which leaves the states as they are.
  __device__ __forceinline__ void prepare(int i) const {
    if (i >= piece.tiles) return;
    const int rows = rows_of(i), stage = stage_of(i), side = i & 1;
    static_assert(kTrade / kPairs * 4 == kRows);
    float d[2][4], delta_u[2][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float of_u[2], of_delta[2];
      load<2>(of_u, &tiles.raw[stage][0][row * 4 + k][c]);
      load<2>(of_delta, &tiles.raw[stage][1][row * 4 + k][c]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        d[j][k] = of_delta[j] + bias[j];
        delta_u[j][k] = of_u[j];
      }
    }
    if (a.s.delta_softplus) {
#pragma unroll
      for (int k = 0; k < 8; ++k) d[k / 4][k % 4] = softplus(d[k / 4][k % 4]);
    }
    if (rows < kRows) {
#pragma unroll
      for (int k = 0; k < 8; ++k) d[k / 4][k % 4] = row * 4 + k % 4 < rows ? d[k / 4][k % 4] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      tiles.delta[side][row][c + j] = make_float4(d[j][0], d[j][1], d[j][2], d[j][3]);
      tiles.delta_u[side][row][c + j] = make_float4(d[j][0] * delta_u[j][0], d[j][1] * delta_u[j][1],
                                                    d[j][2] * delta_u[j][2], d[j][3] * delta_u[j][3]);
    }
    if (kMany) return;
    // B and C: those of a lane's states side by side.
    static_assert(kRows * kBlockStates / 2 == kTrade);
    const int t = thread / (kBlockStates / 2), n = thread % (kBlockStates / 2) * 2;
    float* to = tiles.BC[side][t][n / kStates][0] + n % kStates;
#pragma unroll
    for (int which = 0; which < (kWhole ? 2 : 1); ++which) {
      float x[2];
      load<2>(x, &tiles.raw_BC[stage][which][t][n]);
      store<2>(to + which * kStates, x);
    }
  }

  // Called for one tile after another.
  __device__ __forceinline__ void finish(int i) {
    constexpr int kRowStep = kTrade / kPairs;
    const SelectiveScanOperands& s = a.s;
    const int rows = rows_of(i), stage = stage_of(i), side = i & 1;
    float sum[kRows / kRowStep][2];
#pragma unroll
    for (int k = 0; k < kRows / kRowStep; ++k) {
      float of_u[2];
      load<2>(sum[k], &tiles.y[side][row + k * kRowStep][c]);
      load<2>(of_u, &tiles.raw[stage][0][row + k * kRowStep][c]);
#pragma unroll
      for (int j = 0; j < 2; ++j) sum[k][j] = fmaf(D[j], of_u[j], sum[k][j]);
    }
    if (s.z) {
#pragma unroll
      for (int k = 0; k < kRows / kRowStep; ++k) {
        float of_z[2];
        load<2>(of_z, &tiles.raw[stage][2][row + k * kRowStep][c]);
#pragma unroll
        for (int j = 0; j < 2; ++j) sum[k][j] *= silu(of_z[j]);
      }
    }
    if (a.vectors) {
#pragma unroll
      for (int k = 0; k < kRows / kRowStep; ++k) {
        if (row + k * kRowStep < rows && c < piece.width) store<2>(y + k * kRowStep * s.y_stride, sum[k]);
      }
    } else {
#pragma unroll
      for (int k = 0; k < 2 * kRows / kRowStep; ++k) {
        if (row + k / 2 * kRowStep < rows && c + k % 2 < piece.width)
          y[k / 2 * kRowStep * s.y_stride + k % 2] = from_f32<T>(sum[k / 2][k % 2]);
      }
    }
    y += kRows * s.y_stride;
  }
};

}  // namespace ssm::cuda::selective
