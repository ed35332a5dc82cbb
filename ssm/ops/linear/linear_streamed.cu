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
#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "ssm/core/launch.cuh"
#include "ssm/ops/activation/gelu.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/barrier.cuh"
#include "ssm/ops/cuda/cluster.cuh"
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

struct StreamedArgs {
  StreamedResult of[2];    // the second of a product beside the first
  const float* more_bias;  // [N] or null: of a product after the first
  int first_tiles;         // of kColumns rows of W: what follows is the second product's, beside
  int first_steps;         // what follows along K is the second product's, after
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

template <class X, int kColumns, int kGroups>
__global__ void __launch_bounds__(StreamedShared<kColumns, kGroups>::kThreads, 1)
    linear_streamed_kernel(const __grid_constant__ CUtensorMap first_x,
                           const __grid_constant__ CUtensorMap first_w,
                           const __grid_constant__ CUtensorMap second_x,
                           const __grid_constant__ CUtensorMap second_w,
                           const __grid_constant__ StreamedArgs a) {
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
  const bool beside = tile >= a.first_tiles;
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
      const auto ask_for_weights = [&](int i) {
        const bool after = first + i >= a.first_steps;
        const int k = first + i - (after ? a.first_steps : 0);
        arrive_expecting(full(stage), S::kStage);
        copy_tile(weights_at(stage), beside || after ? second_w : first_w, n0, k * kTileColumns, full(stage));
      };
      const auto ask_for_x = [&](int i) {
        const bool after = first + i >= a.first_steps;
        const int k = first + i - (after ? a.first_steps : 0);
        const CUtensorMap& x = beside || after ? second_x : first_x;
        const uint32_t to = x_at(stage) + x_row * 128;
        if (a.sharing > 1) {
          copy_tile_to((1 << kSharing) - 1, to, x, x_row, k * kTileColumns, full(stage));
        } else {
          copy_tile(to, x, 0, k * kTileColumns, full(stage));
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
    if (a.more_bias) load<4>(more, a.more_bias + n);
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
      if (result.gelu) {
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

// How many clusters of whole blocks the card holds.
int room_for(unsigned cluster) {
  using S = StreamedShared<80, 1>;
  const auto kernel = linear_streamed_kernel<__nv_bfloat16, 80, 1>;
  allow_shared_bytes(kernel, kMostBytes);
  return most_clusters(
      {.grid = dim3(1 << 10), .block = dim3(S::kThreads), .shared_bytes = kMostBytes, .cluster = cluster},
      kernel);
}

// What one kernel multiplies; where a second product is there, its blocks are beside the first's or its K
// goes on after the first's.
struct Work {
  LinearOperands first, second = {};
  bool beside = false;

  bool has_second() const { return defined(second.weight); }
  static int64_t steps_of(const LinearOperands& p) {
    return (dense(p).size(1) + kTileColumns - 1) / kTileColumns;
  }
  static const Tensor& dense(const LinearOperands& p) { return std::get<Tensor>(p.weight); }
};

struct Way {
  int columns = 0, parts = 1;
};

bool can_stream(const LinearOperands& p, DType dtype) {
  if (is_packed(p.weight)) return false;
  const Tensor& w = Work::dense(p);
  const int64_t N = w.size(0), K = w.size(1);
  return w.dtype() == dtype && in_packs(w) && N % 8 == 0 && N > 0 && K > 0 && N < (1 << 30) &&
         K < (1 << 30) && (!p.x.defined() || (p.x.dtype() == dtype && in_packs(p.x))) &&
         (!p.bias.defined() || (p.bias.dtype() == DType::f32 && is_aligned(p.bias.raw())));
}

constexpr int64_t kFewRows = 64;  // of one warp group; blocks of more columns have room for no more

// The way whose fullest block has the least to read; none where a product cannot be streamed, or W is too
// much for the card to hold its blocks at once. x may be undefined: aligned, then.
std::optional<Way> way_of(const Work& work, int64_t T) {
  if (!has_streamed_products() || T > kMostRows || is_packed(work.first.weight)) return {};
  const DType dtype = Work::dense(work.first).dtype();
  if (dtype == DType::f32 || !can_stream(work.first, dtype) ||
      (work.has_second() && !can_stream(work.second, dtype))) {
    return {};
  }
  static const std::map<int, int> room{{1, room_for(kSharing)}, {4, room_for(4)}, {8, room_for(8)}};
  const bool beside = work.has_second() && work.beside, after = work.has_second() && !work.beside;
  const int64_t first_steps = Work::steps_of(work.first),
                second_steps = work.has_second() ? Work::steps_of(work.second) : 0,
                steps = after ? first_steps + second_steps : std::max(first_steps, second_steps),
                least_steps = beside ? std::min(first_steps, second_steps) : steps;
  std::optional<Way> best;
  int64_t least = 0;
  for (const int columns : {32, 48, 64, 80, 96, 112, 144}) {
    if (columns > 96 && (T > kFewRows || !beside)) continue;
    for (const auto& [parts, most] : room) {
      const auto clusters_of = [&, parts = parts](const LinearOperands& p) {
        const int64_t tiles = (Work::dense(p).size(0) + columns - 1) / columns;
        return parts > 1 ? tiles : (tiles + 1) / kSharing;
      };
      if (clusters_of(work.first) + (beside ? clusters_of(work.second) : 0) > most || least_steps < parts)
        continue;
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
void launch_way(const Way& way, const Work& work, StreamedArgs a) {
  using S = StreamedShared<kColumns, kGroups>;
  const auto kernel = linear_streamed_kernel<X, kColumns, kGroups>;
  [[maybe_unused]] static const bool allowed =
      allow_shared_bytes(kernel, kMostBytes) && prefer_shared(kernel);
  a.parts = way.parts;
  a.sharing = way.parts > 1 ? 1 : kSharing;
  const auto blocks_of = [&](int N) {
    const int tiles = (N + kColumns - 1) / kColumns;
    return way.parts > 1 ? tiles * way.parts : (tiles + 1) / kSharing * kSharing;
  };
  int blocks = blocks_of(a.of[0].N);
  if (work.has_second() && work.beside) {
    a.first_tiles = blocks / way.parts;
    blocks += blocks_of(a.of[1].N);
  }
  constexpr int kFewStages = 5;  // so that the next kernel's blocks fit beside it
  a.is_small = 2 * blocks <= properties().multiprocessors;
  const int steps = (std::max(a.of[0].steps, a.of[1].steps) + way.parts - 1) / way.parts;
  a.stages = std::min({S::kStages, steps, a.is_small ? kFewStages : S::kStages});
  const auto x_map = [&](const LinearOperands& p) { return tile_map(p.x, S::kRows / a.sharing); };
  const auto w_map = [&](const LinearOperands& p) { return tile_map(Work::dense(p), kColumns); };
  const LinearOperands& second = work.has_second() ? work.second : work.first;
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(S::kThreads),
          .shared_bytes = static_cast<size_t>(S::bytes(a.stages)),
          .overlaps_previous = true,
          .cluster = static_cast<unsigned>(a.parts * a.sharing)},
         kernel, x_map(work.first), w_map(work.first), x_map(second), w_map(second), a);
}

template <class X>
void launch_streamed(const Way& way, const Work& work, const StreamedArgs& a) {
  const auto with = [&](auto columns) {
    if constexpr (columns.value <= 96) {
      if (a.T > kFewRows) return launch_way<X, columns.value, 2>(way, work, a);
    }
    launch_way<X, columns.value, 1>(way, work, a);
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
    case 96:
      return with(std::integral_constant<int, 96>{});
    case 112:
      return with(std::integral_constant<int, 112>{});
    default:
      return with(std::integral_constant<int, 144>{});
  }
}

StreamedResult result_of(const LinearOperands& p, const Tensor& y) {
  return {.bias = p.bias.defined() ? p.bias.data<float>() : nullptr,
          .y = const_cast<std::byte*>(y.raw()),
          .y_stride = y.stride(0),
          .N = static_cast<int>(Work::dense(p).size(0)),
          .steps = static_cast<int>(Work::steps_of(p)),
          .gelu = false};
}

struct Results {
  Tensor y;
  bool adds = false;
  Tensor second_y = {};  // of a second product beside the first: gelu of it
  StreamedScale scale = {};
  StreamedNorm next = {};
};

bool streamed(const Work& work, const Results& results) {
  const auto& [y, adds, second_y, scale, next] = results;
  const std::optional<Way> way = way_of(work, y.size(0));
  if (!way || !in_packs(y) || (second_y.defined() && !in_packs(second_y))) return false;
  constexpr int kNone = std::numeric_limits<int>::max();
  StreamedArgs a{.of = {result_of(work.first, y), {}},
                 .more_bias = nullptr,
                 .first_tiles = kNone,
                 .first_steps = kNone,
                 .T = static_cast<int>(y.size(0)),
                 .parts = 1,
                 .sharing = 1,
                 .stages = 0,
                 .y_is_f32 = y.dtype() == DType::f32,
                 .adds = adds,
                 .is_small = false,
                 .scale = scale,
                 .next = next};
  if (work.has_second() && work.beside) {
    a.of[1] = result_of(work.second, second_y);
    a.of[1].gelu = true;
  } else if (work.has_second()) {
    const StreamedResult more = result_of(work.second, y);
    a.first_steps = std::exchange(a.of[0].steps, a.of[0].steps + more.steps);
    a.more_bias = more.bias;
  }
  work.first.x.dtype() == DType::bf16 ? launch_streamed<__nv_bfloat16>(*way, work, a)
                                      : launch_streamed<__half>(*way, work, a);
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
  return streamed({.first = {x, w, bias}}, {.y = y});
}

bool linear_add_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  return streamed({.first = {x, w, bias}}, {.y = residual, .adds = true});
}

bool can_stream(int64_t T, const Tensor& w) { return way_of({.first = {{}, w, {}}}, T).has_value(); }

UndividedNorm linear_add_norm(const LinearOperands& p, const Tensor& residual, const Tensor& norm_weight,
                              float eps) {
  const std::optional<Way> way = way_of({.first = p}, residual.size(0));
  SSM_CHECK(way && is_aligned(norm_weight.raw()), "linear_add_norm: an operand is not aligned");
  const int64_t tiles = (residual.size(1) + way->columns - 1) / way->columns, count = (tiles + 3) / 4 * 4;
  const UndividedNorm left{.x = Tensor::empty(residual.shape(), p.x.dtype(), residual.device()),
                           .squares = Tensor::empty({residual.size(0), count}, DType::f32, residual.device()),
                           .eps = eps};
  const StreamedNorm next{.weight = norm_weight.data<float>(),
                          .x = left.x.raw(),
                          .squares = left.squares.data<float>(),
                          .x_stride = left.x.stride(0),
                          .count = static_cast<int>(count)};
  SSM_CHECK(streamed({.first = p}, {.y = residual, .adds = true, .next = next}),
            "linear_add_norm: the residual is not aligned");
  return left;
}

void linear_of_norm(const UndividedNorm& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const StreamedScale scale{.squares = x.squares.data<float>(),
                            .count = static_cast<int>(x.squares.size(1)),
                            .inverse_width = 1.0f / static_cast<float>(x.x.size(1)),
                            .eps = x.eps};
  SSM_CHECK(streamed({.first = {x.x, w, bias}}, {.y = y, .scale = scale}),
            "linear_of_norm: an operand is not aligned");
}

bool has_linear_beside(const LinearOperands& first, const LinearOperands& second) {
  const int64_t T = first.x.size(0);
  return T > kStepRows && T <= kFewRows && way_of({first, second, true}, T).has_value();
}

void linear_beside(const LinearOperands& first, const LinearOperands& second, const Tensor& y1,
                   const Tensor& y2) {
  SSM_CHECK(streamed({first, second, true}, {.y = y1, .second_y = y2}),
            "linear_beside: the results are not aligned");
}

bool has_linear_add_both(const LinearOperands& first, const LinearOperands& second) {
  const int64_t T = first.x.size(0);
  return T > kStepRows && T <= kFewRows && way_of({first, second, false}, T).has_value();
}

void linear_add_both(const LinearOperands& first, const LinearOperands& second, const Tensor& residual) {
  SSM_CHECK(streamed({first, second, false}, {.y = residual, .adds = true}),
            "linear_add_both: the residual is not aligned");
}

}  // namespace ssm::cuda
