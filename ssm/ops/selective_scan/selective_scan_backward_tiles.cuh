// What a block of the scan's backward works on: a chunk of one sequence's time for kChannels channels and
// kStates states, in tiles of kRows tokens. Its warps have two trades. A helper copies, prepares and finishes
// four channels of one token of a tile; a scanner takes kOwn states of two channels through all of them, the
// kLanes lanes of two channels being neighbours.
//
// The order in which a lane holds its states depends on its channels, so that in a sum over a warp's channels
// what a lane keeps lies in the same registers everywhere: register j is state kOwn lane + (j ^ order).
#pragma once

#include <type_traits>

#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/selective_scan/selective_scan_cuda.cuh"

namespace ssm::cuda::selective_backward {

inline constexpr int kThreads = 128;  // of each trade
inline constexpr int kStates = 16;    // of a launch
inline constexpr int kOwn = 4;
inline constexpr int kLanes = kStates / kOwn;
inline constexpr int kChannels = kThreads / kLanes * 2;
inline constexpr int kRows = 8;
inline constexpr int kGroup = 4;   // tokens whose decays are held in registers
inline constexpr int kStages = 5;  // tiles being finished, scanned, prepared, and two on their way
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kPitch = kChannels + 8;
inline constexpr int kParameters = kStates + 2;
static_assert(kThreads == kRows * kChannels / 4 && kThreads == kRows * kStates && kOwn == 4);

struct BackwardArgs {
  SelectiveScanOperands s;  // of it neither y nor the state
  const void* dy;
  void *du, *ddelta, *dz;  // null: not wanted
  int64_t dy_stride, du_stride, ddelta_stride, dz_stride;
  const float* initial;  // [B, N, E] or null
  // Where time is split: what each chunk adds to the state and to dh, and its sum of delta'; then the state
  // before it and dh after it. [chunk numbers, E, kStates], [chunk numbers, E]
  float *chunk_h, *chunk_dh, *chunk_delta;
  float* starts;      // [tile numbers, E, kStates]: the state before each tile
  float* sums;        // [channel blocks, T, 2 kStates]: of dC and dB; or null
  float* parameters;  // [chunk numbers, kParameters, E]: dA, dD, ddelta_bias; or null
  float*
      over_states;  // [3, T, E]: sums over the states of the launches before, where N needs several; or null
  int n0;           // first state of this launch
  bool split, vectors, out_vectors;
  int64_t chunk_length, channel_blocks;

  __host__ __device__ bool first() const { return n0 == 0; }
  __host__ __device__ bool last() const { return n0 + kStates >= s.N; }
};

template <class T>
struct Shared {
  T raw[kStages][4][kRows][kChannels];        // u, delta, dy, z
  float2 steps[2][kRows][kChannels];          // delta' and delta' u
  float dy[2][kRows][kChannels];              // dy'
  float BC[2][2][kRows][kOwn][kStates];       // B and C in each order
  float over_states[2][3][kRows][kPitch];     // of C h, dh kept A and dh B
  float over_channels[2][kWarps][kRows][32];  // dC and dB
};
static_assert(sizeof(Shared<float>) <= 99 * 1024);  // what a block may have on every card

template <class T>
struct Block {
  static constexpr int V = 16 / sizeof(T);
  const BackwardArgs& a;
  Shared<T>& shared;
  int64_t number, e0;
  Chunk chunk;
  int length, width, tiles;
  int thread;
  int row, c;                // that this thread prepares
  int lane, order, channel;  // that it scans: the first of two
  float bias[4], D[4];

  // What a helper copies, in vectors: the same place of a tile in kCopies of u, delta, dy and z.
  static constexpr int kVectors = kRows * kChannels / V, kTeams = kThreads / kVectors, kCopies = 4 / kTeams;
  const T *source[kCopies], *B, *C;  // at this thread's places of the first tile
  T *du, *ddelta, *dz;

  __device__ __forceinline__ int copied(int i) const { return thread / kVectors + kTeams * i; }
  __device__ __forceinline__ int64_t copied_stride(int i) const {
    const int which = copied(i);
    return which == 0   ? a.s.u_stride
           : which == 1 ? a.s.delta_stride
           : which == 2 ? a.dy_stride
                        : a.s.z_stride;
  }
  __device__ __forceinline__ int copy_row() const { return thread % kVectors / (kChannels / V); }
  __device__ __forceinline__ int copy_column() const { return thread % (kChannels / V) * V; }
  // The same place of another tile. A tile's rows lie within 2 GB.
  template <class X>
  static __device__ __forceinline__ X* at_tile(X* first, int tile, int64_t stride) {
    const int step = static_cast<int>(stride * kRows * static_cast<int64_t>(sizeof(X)));
    using Byte = std::conditional_t<std::is_const_v<X>, const char, char>;
    return reinterpret_cast<X*>(reinterpret_cast<Byte*>(first) + int64_t{tile} * step);
  }

  __device__ __forceinline__ Block(const BackwardArgs& args, Shared<T>& in)
      : a(args),
        shared(in),
        number(blockIdx.x / args.channel_blocks),
        e0(blockIdx.x % args.channel_blocks * kChannels),
        chunk(chunk_of(args.s.batch, number, args.chunk_length)),
        length(static_cast<int>(chunk.end - chunk.begin)),
        width(static_cast<int>(min(int64_t{kChannels}, args.s.E - e0))),
        tiles((length + kRows - 1) / kRows),
        thread(threadIdx.x % kThreads),
        row(thread / (kChannels / 4)),
        c(thread % (kChannels / 4) * 4),
        lane(thread % kLanes),
        order(thread / kLanes % 4),
        channel(thread / kLanes * 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = c + i < width;
      bias[i] = a.s.delta_bias && there ? a.s.delta_bias[e0 + c + i] : 0.0f;
      D[i] = a.s.D && there ? a.s.D[e0 + c + i] : 0.0f;
    }
    for (int i = 0; i < kCopies; ++i) {
      const int which = copied(i);
      const void* const from = which == 0 ? a.s.u : which == 1 ? a.s.delta : which == 2 ? a.dy : a.s.z;
      const int64_t stride = copied_stride(i);
      source[i] = from
                      ? static_cast<const T*>(from) + (chunk.begin + copy_row()) * stride + e0 + copy_column()
                      : nullptr;
    }
    const auto first = [&](void* to, int64_t stride) {
      return to ? static_cast<T*>(to) + (chunk.begin + row) * stride + e0 + c : nullptr;
    };
    du = first(a.du, a.du_stride), ddelta = first(a.ddelta, a.ddelta_stride), dz = first(a.dz, a.dz_stride);
    const auto first_state = [&](const void* from, int64_t stride) {
      return static_cast<const T*>(from) + (chunk.begin + thread / kStates) * stride + a.n0 +
             thread % kStates;
    };
    B = first_state(a.s.B, a.s.B_stride), C = first_state(a.s.C, a.s.C_stride);
  }

  __device__ __forceinline__ int64_t first_row(int tile) const { return chunk.begin + int64_t{tile} * kRows; }
  __device__ __forceinline__ int rows_of(int tile) const {
    return static_cast<int>(min(int64_t{kRows}, chunk.end - first_row(tile)));
  }

  // Rows of u and delta, and of dy and z for the way back. One group of copies a call.
  template <bool kBack>
  __device__ __forceinline__ void copy_in(int tile, int stage) const {
    if (tile >= 0 && tile < tiles) {
      if (a.vectors) {
        const bool there = tile * kRows + copy_row() < length && copy_column() < width;
#pragma unroll
        for (int i = 0; i < (kBack ? kCopies : kCopies / 2); ++i) {
          if (source[i] == nullptr) continue;
          T* const to = &shared.raw[stage][copied(i)][copy_row()][copy_column()];
          copy_async(shared_address(to), there ? at_tile(source[i], tile, copied_stride(i)) : source[i],
                     there);
        }
      } else {
        copy_elements<kBack>(tile, stage);
      }
    }
    commit_copies();
  }
  template <bool kBack>
  __device__ __forceinline__ void copy_elements(int tile, int stage) const {
    const int rows = rows_of(tile);
    const int64_t t = first_row(tile);
    const void* const from[4] = {a.s.u, a.s.delta, a.dy, a.s.z};
    const int64_t stride[4] = {a.s.u_stride, a.s.delta_stride, a.dy_stride, a.s.z_stride};
#pragma unroll
    for (int which = 0; which < (kBack ? 4 : 2); ++which) {
      if (from[which] == nullptr) continue;
      const T* const x = static_cast<const T*>(from[which]) + t * stride[which] + e0;
      T* const to = shared.raw[stage][which][0];
      for (int i = thread; i < kRows * kChannels; i += kThreads) {
        const int r = i / kChannels, at = i % kChannels;
        to[i] = r < rows && at < width ? x[r * stride[which] + at] : from_f32<T>(0.0f);
      }
    }
  }

  // B and C of a tile, one element each a thread; not yet widened, which would wait for them.
  struct BC {
    T B, C;
  };
  __device__ __forceinline__ BC fetch_BC(int tile) const {
    BC x{from_f32<T>(0.0f), from_f32<T>(0.0f)};
    if (tile >= 0 && tile * kRows + thread / kStates < length && a.n0 + thread % kStates < a.s.N) {
      x.B = *at_tile(B, tile, a.s.B_stride);
      x.C = *at_tile(C, tile, a.s.C_stride);
    }
    return x;
  }

  // Past the sequence's end delta', delta' u and dy' are 0, which leaves h and dh as they are and adds
  // nothing.
  template <bool kBack>
  __device__ __forceinline__ void prepare(int tile, int stage, int side, const BC& of) const {
    const bool there = tile * kRows + row < length;
    float u[4], delta[4], steps[8];
    load<4>(u, &shared.raw[stage][0][row][c]);
    load<4>(delta, &shared.raw[stage][1][row][c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      delta[i] += bias[i];
      if (a.s.delta_softplus) delta[i] = softplus(delta[i]);
      steps[2 * i] = there ? delta[i] : 0.0f;
      steps[2 * i + 1] = steps[2 * i] * u[i];
    }
    store<4>(&shared.steps[side][row][c].x, {steps[0], steps[1], steps[2], steps[3]});
    store<4>(&shared.steps[side][row][c + 2].x, {steps[4], steps[5], steps[6], steps[7]});
    if constexpr (kBack) {
      float dy[4];
      load<4>(dy, &shared.raw[stage][2][row][c]);
      if (a.s.z) {
        float z[4];
        load<4>(z, &shared.raw[stage][3][row][c]);
#pragma unroll
        for (int i = 0; i < 4; ++i) dy[i] *= silu(z[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) dy[i] = there ? dy[i] : 0.0f;
      store<4>(&shared.dy[side][row][c], dy);
    }
    const int t = thread / kStates, n = thread % kStates;
    const float B = to_f32(of.B), C = to_f32(of.C);
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      shared.BC[side][0][t][o][n ^ o] = B;
      if constexpr (kBack) shared.BC[side][1][t][o][n ^ o] = C;
    }
  }

  // Of a scanner's two channels: delta', delta' u, the next channel's.
  __device__ __forceinline__ void load_steps(float (&to)[4], int side, int r) const {
    load<4>(to, &shared.steps[side][r][channel].x);
  }
  __device__ __forceinline__ void load_dy(float (&to)[2], int side, int r) const {
    load<2>(to, &shared.dy[side][r][channel]);
  }
  __device__ __forceinline__ void load_BC(float (&to)[kOwn], int side, int which, int r) const {
    load<kOwn>(to, &shared.BC[side][which][r][order][lane * kOwn]);
  }

  // The gradients of this thread's token and channels from the sums over the states.
  __device__ __forceinline__ void finish(int tile, int stage, int side, float (&dD)[4],
                                         float (&dbias)[4]) const {
    if (tile * kRows + row >= length) return;
    float sum[3][4];
#pragma unroll
    for (int q = 0; q < 3; ++q) load<4>(sum[q], &shared.over_states[side][q][row][c]);
    if (a.over_states) {
      const int64_t t = first_row(tile) + row;
#pragma unroll
      for (int i = 0; i < 12; ++i) {
        if (c + i % 4 >= width) continue;
        float& other = a.over_states[((i / 4) * a.s.batch.total + t) * a.s.E + e0 + c + i % 4];
        if (!a.first()) sum[i / 4][i % 4] += other;
        other = sum[i / 4][i % 4];
      }
      if (!a.last()) return;
    }
    float u[4], raw[4], gated[4], steps[2][4], of_u[4], of_delta[4];
    load<4>(u, &shared.raw[stage][0][row][c]);
    load<4>(raw, &shared.raw[stage][1][row][c]);
    load<4>(gated, &shared.dy[side][row][c]);
    load<4>(steps[0], &shared.steps[side][row][c].x);
    load<4>(steps[1], &shared.steps[side][row][c + 2].x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float slope = a.s.delta_softplus ? sigmoid(raw[i] + bias[i]) : 1.0f;
      of_u[i] = fmaf(steps[i / 2][i % 2 * 2], sum[2][i], D[i] * gated[i]);
      of_delta[i] = fmaf(u[i], sum[2][i], sum[1][i]) * slope;
      dD[i] = fmaf(gated[i], u[i], dD[i]);
      dbias[i] += of_delta[i];
    }
    if (du) write(at_tile(du, tile, a.du_stride), of_u);
    if (ddelta) write(at_tile(ddelta, tile, a.ddelta_stride), of_delta);
    if (dz) {
      float z[4], dy[4];
      load<4>(dy, &shared.raw[stage][2][row][c]);
      load<4>(z, &shared.raw[stage][3][row][c]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float gate = sigmoid(z[i]);
        dy[i] *= fmaf(D[i], u[i], sum[0][i]) * gate * fmaf(z[i], 1.0f - gate, 1.0f);
      }
      write(at_tile(dz, tile, a.dz_stride), dy);
    }
  }

  __device__ __forceinline__ void write(T* at, const float (&x)[4]) const {
    if (a.out_vectors) {
      if (c < width) store<4>(at, x);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (c + i < width) at[i] = from_f32<T>(x[i]);
      }
    }
  }
};

}  // namespace ssm::cuda::selective_backward
