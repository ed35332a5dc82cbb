// Products of 9 to 128 rows on Hopper. The rows of x are the left operand of wgmma, so that few of them cost
// little, and the weights pass once through a ring in shared memory, asked for before the kernel ahead has
// ended: what is left of a product is the time in which its weights are read.
//
// A block multiplies kColumns rows of W. Where such blocks fill the card, two share x: each fetches a half of
// it for both. Else a cluster's blocks share K out, and add their sums up through one another's shared
// memory, each for its part of the rows, in one order.
#include <algorithm>
#include <map>
#include <optional>

#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/barrier.cuh"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/tensor_map.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/cuda/wgmma.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kSharing = 2;  // blocks of a cluster that share x
constexpr int kGroup = 128;  // threads
constexpr int kMostRows = 128;
constexpr int kMostBytes = 226 << 10;  // of shared memory

struct StreamedArgs {
  const float* bias;  // [N] or null
  void* y;            // [T, N] of X or f32
  int64_t y_stride;
  int T, N;
  int steps, steps_of_part;  // of kTileColumns along K
  int parts, sharing;        // blocks of a cluster that share K out, or x; one of them is 1
  int stages;                // of the ring
  bool y_is_f32, adds;
  bool is_small;  // leaves most of the card to the next kernel
};

// kGroups warp groups of 64 rows each, and the warp that asks for tiles.
template <int kColumns, int kGroups>
struct StreamedShared {
  static constexpr int kRows = 64 * kGroups, kThreads = kGroup * kGroups + 32;
  static constexpr int kWeights = kColumns * 128, kStage = kWeights + kRows * 128;
  static constexpr int kSumStride = kColumns + 8, kSums = kRows * kSumStride * 4;
  static constexpr int kStages = std::min(12, (kMostBytes - kSums) / (kStage + 16));
  static constexpr int bytes(int stages) { return stages * (kStage + 16) + kSums; }
};

template <class X, int kColumns, int kGroups>
__global__ void __launch_bounds__(StreamedShared<kColumns, kGroups>::kThreads, 1)
    linear_streamed_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                           const __grid_constant__ StreamedArgs a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using S = StreamedShared<kColumns, kGroups>;
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t base = shared_address(shared), full_at = base + a.stages * S::kStage + S::kSums;
  const auto weights_at = [&](int stage) { return base + stage * S::kStage; };
  const auto x_at = [&](int stage) { return weights_at(stage) + S::kWeights; };
  const auto full = [&](int stage) { return full_at + 8 * stage; };
  const auto empty = [&](int stage) { return full_at + 8 * (a.stages + stage); };
  float* const own_sums = reinterpret_cast<float*>(shared + a.stages * S::kStage);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int rank = static_cast<int>(cluster_rank()), part = a.parts > 1 ? rank : 0;
  const int n0 = static_cast<int>(blockIdx.x) / a.parts * kColumns, rows_of_part = S::kRows / a.parts;
  const int first = part * a.steps_of_part, steps = max(0, min(a.steps_of_part, a.steps - first));
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
      const auto ask_for_weights = [&](int i) {
        arrive_expecting(full(stage), S::kStage);
        copy_tile(weights_at(stage), w, n0, (first + i) * kTileColumns, full(stage));
      };
      const auto ask_for_x = [&](int i) {
        const uint32_t to = x_at(stage) + x_row * 128;
        if (a.sharing > 1) {
          copy_tile_to((1 << kSharing) - 1, to, x, x_row, (first + i) * kTileColumns, full(stage));
        } else {
          copy_tile(to, x, 0, (first + i) * kTileColumns, full(stage));
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
  const int rows_there = own_row < kAtOnce && n < a.N ? min(rows_of_part, a.T - part * rows_of_part) : 0;
  const auto y_at = [&](int row) { return int64_t{part * rows_of_part + row} * a.y_stride + n; };
  grid_dependency_wait();

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
      if (a.adds && row < rows_there) load<4>(held[j], static_cast<float*>(a.y) + y_at(row));
    }
  };
  float bias[4] = {};
  if (a.bias && rows_there > 0) load<4>(bias, a.bias + n);
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
#pragma unroll 1
  for (int first_row = own_row; first_row < rows_there; first_row += kInFlight * kAtOnce) {
    if (first_row > own_row) read(first_row);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const int row = first_row + j * kAtOnce;
      if (row >= rows_there) break;
      float sum[4], more[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) sum[c] = bias[c];
#pragma unroll 1
      for (int p = 0; p < a.parts; ++p) {
        load<4>(more, own_sums + (p * rows_of_part + row) * S::kSumStride + column);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += more[c];
      }
      if (a.y_is_f32) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += a.adds ? held[j][c] : 0.0f;
        store<4>(static_cast<float*>(a.y) + y_at(row), sum);
      } else {
        store<4>(static_cast<X*>(a.y) + y_at(row), sum);
      }
    }
  }
#endif
}

// How many clusters of whole blocks the card holds.
int room_for(unsigned cluster) {
  using S = StreamedShared<80, 1>;
  const auto kernel = linear_streamed_kernel<__nv_bfloat16, 80, 1>;
  allow_shared_bytes(kernel, kMostBytes);
  return most_clusters(
      {.grid = dim3(1 << 10), .block = dim3(S::kThreads), .shared_bytes = kMostBytes, .cluster = cluster},
      kernel);
}

struct Way {
  int columns = 0, parts = 1;
};

// The one whose fullest block has the least to read; none where a product cannot be streamed, or W is too
// much for the card to hold its blocks at once.
std::optional<Way> way_of(int64_t T, const Tensor& w) {
  const int64_t N = w.size(0), K = w.size(1);
  if (!has_streamed_products() || T > kMostRows || w.dtype() == DType::f32 || !in_packs(w) || N % 8 != 0 ||
      N == 0 || K == 0 || N >= (1 << 30) || K >= (1 << 30)) {
    return {};
  }
  static const std::map<int, int> room{{1, room_for(kSharing)}, {4, room_for(4)}, {8, room_for(8)}};
  std::optional<Way> best;
  int64_t least = 0;
  const int64_t steps = (K + kTileColumns - 1) / kTileColumns;
  for (const int columns : {32, 48, 64, 80, 96}) {
    for (const auto& [parts, most] : room) {
      const int64_t tiles = (N + columns - 1) / columns,
                    clusters = parts > 1 ? tiles : (tiles + 1) / kSharing;
      if (clusters > most || steps < parts) continue;
      // x comes from L2, in a quarter of the time and less where it is shared; to add up costs some steps.
      constexpr int64_t kToAddUp = 400;
      const int64_t cost = (steps + parts - 1) / parts * (4 * columns + (parts > 1 ? T : T / kSharing)) +
                           (parts > 1 ? kToAddUp : 0);
      if (!best || cost < least) best = Way{columns, parts}, least = cost;
    }
  }
  return best;
}

template <class X, int kColumns, int kGroups>
void launch_way(const Way& way, const Tensor& x, const Tensor& w, StreamedArgs a) {
  using S = StreamedShared<kColumns, kGroups>;
  const auto kernel = linear_streamed_kernel<X, kColumns, kGroups>;
  [[maybe_unused]] static const bool allowed =
      allow_shared_bytes(kernel, kMostBytes) && prefer_shared(kernel);
  a.parts = way.parts;
  a.sharing = way.parts > 1 ? 1 : kSharing;
  a.steps_of_part = (a.steps + way.parts - 1) / way.parts;
  const int tiles = (a.N + kColumns - 1) / kColumns;
  const int blocks = way.parts > 1 ? tiles * way.parts : (tiles + 1) / kSharing * kSharing;
  constexpr int kFewStages = 5;  // so that the next kernel's blocks fit beside it
  a.is_small = 2 * blocks <= properties().multiprocessors;
  a.stages = std::min({S::kStages, a.steps_of_part, a.is_small ? kFewStages : S::kStages});
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(S::kThreads),
          .shared_bytes = static_cast<size_t>(S::bytes(a.stages)),
          .overlaps_previous = true,
          .cluster = static_cast<unsigned>(a.parts * a.sharing)},
         kernel, tile_map(x, S::kRows / a.sharing), tile_map(w, kColumns), a);
}

template <class X>
void launch_streamed(const Way& way, const Tensor& x, const Tensor& w, const StreamedArgs& a) {
  const auto with = [&](auto columns) {
    a.T <= 64 ? launch_way<X, columns.value, 1>(way, x, w, a) : launch_way<X, columns.value, 2>(way, x, w, a);
  };
  switch (way.columns) {
    case 32:
      return with(std::integral_constant<int, 32>{});
    case 48:
      return with(std::integral_constant<int, 48>{});
    case 64:
      return with(std::integral_constant<int, 64>{});
    case 80:
      return with(std::integral_constant<int, 80>{});
    default:
      return with(std::integral_constant<int, 96>{});
  }
}

bool in_quads(const Tensor& t) { return !t.defined() || is_aligned(t.raw()); }

bool streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y, bool adds) {
  const std::optional<Way> way = way_of(x.size(0), w);
  if (!way || w.dtype() != x.dtype() || !in_packs(x) || !in_packs(y) ||
      (bias.defined() && (bias.dtype() != DType::f32 || !in_quads(bias)))) {
    return false;
  }
  const StreamedArgs a{.bias = bias.defined() ? bias.data<float>() : nullptr,
                       .y = const_cast<std::byte*>(y.raw()),
                       .y_stride = y.stride(0),
                       .T = static_cast<int>(x.size(0)),
                       .N = static_cast<int>(w.size(0)),
                       .steps = static_cast<int>((w.size(1) + kTileColumns - 1) / kTileColumns),
                       .steps_of_part = 0,
                       .parts = 1,
                       .sharing = 1,
                       .stages = 0,
                       .y_is_f32 = y.dtype() == DType::f32,
                       .adds = adds,
                       .is_small = false};
  x.dtype() == DType::bf16 ? launch_streamed<__nv_bfloat16>(*way, x, w, a)
                           : launch_streamed<__half>(*way, x, w, a);
  return true;
}

}  // namespace

bool has_streamed_products() {
#ifdef SSM_WARPGROUPS
  return properties().major == 9;
#else
  return false;
#endif
}

bool linear_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  return streamed(x, w, bias, y, false);
}

bool linear_add_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  return streamed(x, w, bias, residual, true);
}

}  // namespace ssm::cuda
