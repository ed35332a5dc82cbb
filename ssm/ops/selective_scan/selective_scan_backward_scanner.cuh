// The scanners of the scan's backward: the recurrence forwards, again from a tile's first state, and back.
#pragma once

#include "ssm/ops/selective_scan/selective_scan_backward_tiles.cuh"

namespace ssm::cuda::selective_backward {

// x[i] of lanes i, i ^ kMask .. are summed pairwise and shared out: the lane with the bit set ends with the
// upper half of its values in x[0 .. kCount / 2].
template <int kMask, int kCount>
__device__ __forceinline__ void fold(float* x) {
  const bool upper = threadIdx.x & kMask;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float keep = upper ? x[i + kCount / 2] : x[i], send = upper ? x[i] : x[i + kCount / 2];
    x[i] = keep + __shfl_xor_sync(0xffffffffu, send, kMask);
  }
}

// A thread's states of its two channels.
template <class T>
struct Scanner {
  const BackwardArgs& a;
  const Block<T>& block;
  float A[2][kOwn];  // in units of log 2
  float h[2][kOwn] = {}, dh[2][kOwn] = {}, dA[2][kOwn] = {};

  __device__ __forceinline__ Scanner(const BackwardArgs& args, const Block<T>& of) : a(args), block(of) {
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) A[i / kOwn][i % kOwn] = 0.0f;
    for_states([&](int i, int j, int n, int64_t e) {
      if (a.n0 + n < a.s.N)
        A[i][j] = kLog2e * a.s.A[e * a.s.A_channel_stride + (a.n0 + n) * a.s.A_state_stride];
    });
  }

  // f(which channel, register, state of this launch, channel)
  template <class F>
  __device__ __forceinline__ void for_states(F&& f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        if (block.channel + i < block.width)
          f(i, j, block.lane * kOwn + (j ^ block.order), block.e0 + block.channel + i);
      }
    }
  }

  __device__ __forceinline__ void load_first() {
    for_states([&](int i, int j, int n, int64_t e) {
      if (a.split) {
        const int64_t at = (block.number * a.s.E + e) * kStates + n;
        h[i][j] = a.chunk_h[at], dh[i][j] = a.chunk_dh[at];
      } else if (a.initial && a.n0 + n < a.s.N) {
        h[i][j] = a.initial[(block.chunk.sequence * a.s.N + a.n0 + n) * a.s.E + e];
      }
    });
  }

  // Read and written by this thread only, in its order.
  __device__ __forceinline__ float* start_of(int tile) const {
    const int64_t b = block.chunk.sequence, begin = a.s.batch.offsets[b];
    const int64_t number = begin / kRows + b + (block.first_row(tile) - begin) / kRows;
    return a.starts + (number * a.s.E + block.e0 + block.channel) * kStates + block.lane * kOwn;
  }
  __device__ __forceinline__ void store_start(int tile) const {
    float* const to = start_of(tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (block.channel + i < block.width) store<kOwn>(to + i * kStates, h[i]);
    }
  }
  __device__ __forceinline__ void load_start(int tile, float (&to)[2][kOwn]) const {
    const float* const from = start_of(tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (block.channel + i < block.width) load<kOwn>(to[i], from + i * kStates);
    }
  }

  __device__ __forceinline__ void advance(int side, int first, int rows) {
#pragma unroll 4
    for (int r = first; r < first + rows; ++r) {
      float steps[4], B[kOwn];
      block.load_steps(steps, side, r);
      block.load_BC(B, side, 0, r);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j)
          h[i][j] = fmaf(exp2_fast(steps[2 * i] * A[i][j]), h[i][j], steps[2 * i + 1] * B[j]);
      }
    }
  }

  // Back over token r, whose decays and kept states are given; sums[q][i] are over the thread's states.
  __device__ __forceinline__ void back(int side, int r, const float (&decay)[2][kOwn],
                                       const float (&kept)[2][kOwn], float (&sums)[3][2]) {
    float steps[4], dy[2], B[kOwn], C[kOwn], dC[kOwn], dB[kOwn];
    block.load_steps(steps, side, r);
    block.load_dy(dy, side, r);
    block.load_BC(B, side, 0, r);
    block.load_BC(C, side, 1, r);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float delta = steps[2 * i], delta_u = steps[2 * i + 1];
      float y = 0.0f, ddelta = 0.0f, du = 0.0f;
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const float state = fmaf(delta_u, B[j], kept[i][j]);
        const float g = fmaf(C[j], dy[i], dh[i][j]);
        const float through = g * kept[i][j];
        y = fmaf(C[j], state, y);
        dA[i][j] = fmaf(through, delta, dA[i][j]);
        ddelta = fmaf(through, A[i][j], ddelta);
        du = fmaf(g, B[j], du);
        dC[j] = i == 0 ? dy[0] * state : fmaf(dy[1], state, dC[j]);
        dB[j] = i == 0 ? g * delta_u : fmaf(g, delta_u, dB[j]);
        dh[i][j] = g * decay[i][j];
      }
      sums[0][i] = y, sums[1][i] = ddelta, sums[2][i] = du;
    }
    // Over the warp's channels: a lane ends with dC or dB of its first register's state.
    constexpr unsigned kAll = 0xffffffffu;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      dC[j] += __shfl_xor_sync(kAll, dC[j + 2], 8);
      dB[j] += __shfl_xor_sync(kAll, dB[j + 2], 8);
    }
    dC[0] += __shfl_xor_sync(kAll, dC[1], 4);
    dB[0] += __shfl_xor_sync(kAll, dB[1], 4);
    const int id = threadIdx.x % 32;
    const bool is_B = id >= 16;
    const float keep = is_B ? dB[0] : dC[0], send = is_B ? dC[0] : dB[0];
    block.shared
        .over_channels[side][threadIdx.x / 32][r][(is_B ? kStates : 0) + block.lane * kOwn + block.order] =
        keep + __shfl_xor_sync(kAll, send, 16);
  }

  // kGroup tokens from `first` on, from their first state h: again forwards, then back.
  __device__ __forceinline__ void group(int side, int first) {
    float decay[kGroup][2][kOwn], kept[kGroup][2][kOwn];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      float steps[4], B[kOwn];
      block.load_steps(steps, side, first + k);
      block.load_BC(B, side, 0, first + k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          decay[k][i][j] = exp2_fast(steps[2 * i] * A[i][j]);
          kept[k][i][j] = decay[k][i][j] * h[i][j];
          h[i][j] = fmaf(steps[2 * i + 1], B[j], kept[k][i][j]);
        }
      }
    }
#pragma unroll
    for (int k0 = kGroup - 4; k0 >= 0; k0 -= 4) {
      float sums[4][3][2];
#pragma unroll
      for (int k = 3; k >= 0; --k) back(side, first + k0 + k, decay[k0 + k], kept[k0 + k], sums[k]);
      const int r =
          first + k0 + (block.lane & 1) * 2 + (block.lane >> 1);  // the token that this lane ends with
#pragma unroll
      for (int q = 0; q < 3; ++q) {
        float own[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float x[4] = {sums[0][q][i], sums[1][q][i], sums[2][q][i], sums[3][q][i]};
          fold<1, 4>(x);
          fold<2, 2>(x);
          own[i] = q == 1 ? x[0] * (1.0f / kLog2e) : x[0];
        }
        store<2>(&block.shared.over_states[side][q][r][block.channel], own);
      }
    }
  }

  __device__ __forceinline__ void tile_back(int side) {
    static_assert(kRows == 2 * kGroup);
    float begin[2][kOwn];
#pragma unroll
    for (int i = 0; i < 2 * kOwn; ++i) begin[i / kOwn][i % kOwn] = h[i / kOwn][i % kOwn];
    advance(side, 0, kGroup);
#pragma unroll 1
    for (int first = kGroup; first >= 0; first -= kGroup) {
      group(side, first);
#pragma unroll
      for (int i = 0; i < 2 * kOwn; ++i) h[i / kOwn][i % kOwn] = begin[i / kOwn][i % kOwn];
    }
  }
};

}  // namespace ssm::cuda::selective_backward
