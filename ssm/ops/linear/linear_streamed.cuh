// Products of 9 to 128 rows on Hopper. The rows of x are the left operand of wgmma, so that few of them cost
// little, and the weights pass once through a ring in shared memory, asked for before the kernel ahead has
// ended: what is left of a product is the time in which its weights are read.
//
// A block multiplies kColumns rows of W. Where such blocks fill the card, two share x: each fetches a half of
// it for both. Else a cluster's blocks share K out, and add their sums up through one another's shared
// memory, each for its part of the rows, in one order.
//
// Two products may share a kernel: side by side, with blocks of their own, or one after the other along K,
// into the same sums. And an RMS norm needs no kernel where such products stand on both of its sides: the one
// that adds to the residual leaves its rows times the norm's weight and sums of their squares, the next one
// divides its own rows.
#pragma once

#include <algorithm>

#include "ssm/core/launch.cuh"
#include "ssm/ops/activation/gelu.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/barrier.cuh"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/tensor_map.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/cuda/wgmma.cuh"

namespace ssm::cuda {

inline constexpr int kSharing = 2;  // blocks of a cluster that share x
inline constexpr int kGroup = 128;  // threads
inline constexpr int kMostRows = 128;
inline constexpr int kMostBytes = 226 << 10;  // of shared memory

struct StreamedResult {
  const float* bias;  // [N] or null
  void* y;            // [T, N] of X or f32
  int64_t y_stride;
  int N, steps;  // of kTileColumns along K
  bool gelu;     // of the product, which is not rounded before
};

// What is left for the norm after a product that adds to the residual; null where none is.
struct StreamedNorm {
  const float* weight;  // [N]
  void* x;              // [T, N] of X: residual weight
  float* squares;       // [T, count]: sums of squares of the residual, of each block's columns, then zeros
  int64_t x_stride;
  int count;  // a multiple of 4
};

// The norm before a product, x being what another product left for it.
struct StreamedScale {
  const float* squares;  // [T, count], or null for none
  int count;
  float inverse_width, eps;
};

// Of one or two products.
template <int kProducts>
struct StreamedArgs {
  CUtensorMap x[kProducts], w[kProducts];
  StreamedResult of[kProducts];  // the second of a product beside the first
  const float* more_bias;        // [N] or null: of a product after the first
  int first_tiles;               // of kColumns rows of W: what follows is the second product's, beside
  int first_steps;               // what follows along K is the second product's, after
  int T;
  int parts, sharing;  // blocks of a cluster that share K out, or x; one of them is 1
  int stages;          // of the ring
  bool y_is_f32, adds;
  bool is_small;  // leaves most of the card to the next kernel
  StreamedScale scale;
  StreamedNorm next;
};

// kGroups warp groups of 64 rows each, and the warp that asks for tiles.
template <int kColumns, int kGroups>
struct StreamedShared {
  static constexpr int kRows = 64 * kGroups, kThreads = kGroup * kGroups + 32;
  static constexpr int kWeights = kColumns * 128, kStage = kWeights + kRows * 128;
  static constexpr int kSumStride = kColumns + 8, kSums = kRows * kSumStride * 4;
  static constexpr int kScales = kRows * 4;
  static constexpr int kStages = std::min(12, (kMostBytes - kSums - kScales) / (kStage + 16));
  static constexpr int bytes(int stages) { return stages * (kStage + 16) + kSums + kScales; }
};

template <class X, int kColumns, int kGroups, int kProducts>
__global__ void __launch_bounds__(StreamedShared<kColumns, kGroups>::kThreads, 1)
    linear_streamed_kernel(const __grid_constant__ StreamedArgs<kProducts> a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = StreamedShared<kColumns, kGroups>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared), full_at = base + a.stages * S::kStage + S::kSums + S::kScales;
  const auto weights_at = [&](int stage) { return base + stage * S::kStage; };
  const auto x_at = [&](int stage) { return weights_at(stage) + S::kWeights; };
  const auto full = [&](int stage) { return full_at + 8 * stage; };
  const auto empty = [&](int stage) { return full_at + 8 * (a.stages + stage); };
  float* const own_sums = reinterpret_cast<float*>(shared + a.stages * S::kStage);
  float* const scales = own_sums + S::kSums / 4;  // [kRows]
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int rank = static_cast<int>(cluster_rank()), part = a.parts > 1 ? rank : 0;
  const int tile = static_cast<int>(blockIdx.x) / a.parts, rows_of_part = S::kRows / a.parts;
  const bool beside = kProducts > 1 && tile >= a.first_tiles;
  const StreamedResult& result = a.of[beside];
  const int n0 = (tile - (beside ? a.first_tiles : 0)) * kColumns, N = result.N;
  const int steps_of_part = (result.steps + a.parts - 1) / a.parts;
  const int first = part * steps_of_part, steps = max(0, min(steps_of_part, result.steps - first));
  if (thread == 0) {
    for (int s = 0; s < a.stages; ++s) {
      init_barrier(full(s), 1);
      init_barrier(empty(s), 4 * kGroups * a.sharing);
    }
    publish_barriers();
  }
  cluster_sync();

  // The code is met cold by each product: short loops are quicker than long ones that are unrolled.
  int stage = 0, phase = 0;
  const auto next_stage = [&] {
    if (++stage == a.stages) stage = 0, phase ^= 1;
  };
  if (warp == 4 * kGroups) {
    if (lane == 0) {
      const int rows = S::kRows / a.sharing, x_row = a.sharing > 1 ? rank * rows : 0;
      const auto after = [&](int i) { return kProducts > 1 && first + i >= a.first_steps; };
      const auto column = [&](int i) { return (first + i - (after(i) ? a.first_steps : 0)) * kTileColumns; };
      const auto ask_for_weights = [&](int i) {
        arrive_expecting(full(stage), S::kStage);
        copy_tile(weights_at(stage), a.w[beside || after(i)], n0, column(i), full(stage));
      };
      const auto ask_for_x = [&](int i) {
        const CUtensorMap& x = a.x[beside || after(i)];
        const uint32_t to = x_at(stage) + x_row * 128;
        if (a.sharing > 1) {
          copy_tile_to((1 << kSharing) - 1, to, x, x_row, column(i), full(stage));
        } else {
          copy_tile(to, x, 0, column(i), full(stage));
        }
      };
      const int early = min(steps, a.stages);
#pragma unroll 1
      for (; stage < early; ++stage) ask_for_weights(stage);
      grid_dependency_wait();
#pragma unroll 1
      for (stage = 0; stage < early; ++stage) ask_for_x(stage);
      if (a.is_small) let_next_start();
      stage = 0;
#pragma unroll 1
      for (int i = early; i < steps; ++i, next_stage()) {
        wait_for_phase(empty(stage), phase);
        ask_for_weights(i);
        ask_for_x(i);
      }
      if (!a.is_small) let_next_start();
    }
    __syncwarp();
    cluster_sync();
    return;
  }

  // Threads have four neighbouring columns each, of every kAtOnce-th row.
  constexpr int kQuads = kColumns / 4, kAtOnce = kGroup * kGroups / kQuads, kInFlight = 4;
  const int own_row = thread / kQuads, column = thread % kQuads * 4, n = n0 + column;
  const int rows_there = own_row < kAtOnce && n < N ? min(rows_of_part, a.T - part * rows_of_part) : 0;
  const auto y_at = [&](int row) { return int64_t{part * rows_of_part + row} * result.y_stride + n; };
  // What no kernel ahead writes, from memory in the end, is asked for before they have ended.
  float bias[4] = {}, norm_weight[4] = {};
  if (rows_there > 0) {
    float more[4] = {};
    if (result.bias) load<4>(bias, result.bias + n);
    if (kProducts > 1 && a.more_bias) load<4>(more, a.more_bias + n);
    if (a.next.x) load<4>(norm_weight, a.next.weight + n);
#pragma unroll
    for (int c = 0; c < 4; ++c) bias[c] += more[c];
  }
  grid_dependency_wait();
  if (a.scale.squares && thread < a.T) {
    const float* const squares = a.scale.squares + int64_t{thread} * a.scale.count;
    float sum = 0, more[4];
#pragma unroll 8
    for (int i = 0; i < a.scale.count; i += 4) {
      load<4>(more, squares + i);
      sum += (more[0] + more[1]) + (more[2] + more[3]);
    }
    scales[thread] = rsqrtf(sum * a.scale.inverse_width + a.scale.eps);
  }

  float sums[kColumns / 2] = {};
  const int group = warp / 4;
  uint32_t used = 0;  // the stage before
#pragma unroll 1
  for (int i = 0; i < steps; ++i, next_stage()) {
    wait_for_phase(full(stage), phase);
    const uint64_t left = panels_at(x_at(stage) + group * kPanelBytes), right = panels_at(weights_at(stage));
    fence_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_panels<X>(sums, columns_from(left, k), columns_from(right, k), true);
    commit_products();
    wait_for_products<1>();
    if (i > 0 && lane < a.sharing) arrive_in_block(used, static_cast<unsigned>(a.sharing > 1 ? lane : rank));
    used = empty(stage);
  }
  wait_for_products<0>();
  settle(sums);

  // What is added to is on its way while sums go to the block that adds them up.
  float held[kInFlight][4];
  const auto read = [&](int first_row) {
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int row = first_row + j * kAtOnce;
      if (a.adds && row < rows_there) load<4>(held[j], static_cast<float*>(result.y) + y_at(row));
    }
  };
  read(own_row);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = group * 64 + warp % 4 * 16 + half * 8 + lane / 4;
    float* const there =
        a.parts > 1 ? in_block(own_sums, static_cast<unsigned>(row / rows_of_part)) : own_sums;
    const int at = (part * rows_of_part + row % rows_of_part) * S::kSumStride + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kColumns / 8; ++i)
      *reinterpret_cast<float2*>(there + at + 8 * i) = {sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]};
  }
  cluster_sync();
  const auto leave = [&](int row, float(&residual)[4]) {
    float square = 0, weighted[4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      square += residual[c] * residual[c], weighted[c] = residual[c] * norm_weight[c];
    store<4>(static_cast<X*>(a.next.x) + int64_t{part * rows_of_part + row} * a.next.x_stride + n, weighted);
    own_sums[row * S::kSumStride + column] = square;  // where this thread alone has read
  };
#pragma unroll 1
  for (int first_row = own_row; first_row < rows_there; first_row += kInFlight * kAtOnce) {
    if (first_row > own_row) read(first_row);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int row = first_row + j * kAtOnce;
      if (row >= rows_there) break;
      float sum[4] = {}, more[4];
#pragma unroll 1
      for (int p = 0; p < a.parts; ++p) {
        load<4>(more, own_sums + (p * rows_of_part + row) * S::kSumStride + column);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += more[c];
      }
      const float scale = a.scale.squares ? scales[part * rows_of_part + row] : 1.0f;
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[c] = fmaf(scale, sum[c], bias[c]);
      if (kProducts > 1 && result.gelu) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] = gelu(sum[c]);
      }
      if (a.y_is_f32) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += a.adds ? held[j][c] : 0.0f;
        store<4>(static_cast<float*>(result.y) + y_at(row), sum);
        if (a.next.x) leave(row, sum);
      } else {
        store<4>(static_cast<X*>(result.y) + y_at(row), sum);
      }
    }
  }
  if (!a.next.x) return;
  sync_threads(1, kGroup * kGroups);
  if (thread < min(rows_of_part, a.T - part * rows_of_part)) {
    float square = 0;
    for (int c = 0; c < min(kColumns, N - n0); c += 4) square += own_sums[thread * S::kSumStride + c];
    float* const squares = a.next.squares + int64_t{part * rows_of_part + thread} * a.next.count;
    squares[tile] = square;
    for (int i = tile + 1; n0 + kColumns >= N && i < a.next.count; ++i) squares[i] = 0;
  }
#endif
}

}  // namespace ssm::cuda
