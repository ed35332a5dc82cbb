#include <limits>

#include "ssm/core/launch.cuh"
#include "ssm/ops/cross_entropy/cross_entropy_cuda.h"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kLoads = 4;  // of 16 bytes in flight a thread
constexpr float kLargest = std::numeric_limits<float>::max();

struct CrossEntropyArgs {
  const float* logits;
  int64_t stride;
  const int32_t* targets;
  float* nll;
  int32_t* argmax;
  int64_t vocab, part;  // scores of a row; of a block's share of it
  bool vectors;         // rows start at multiples of 16 bytes
};

// What is known of some scores: the highest finite one, the lowest id that has it, and the sum of
// exp(score - highest). Without a finite score: highest is -inf and the sum 0, or inf for a score of +inf.
struct Summary {
  float highest = -INFINITY, sum = 0;
  int32_t id = -1;

  __device__ float reference() const { return highest == -INFINITY ? 0.0f : highest; }
  template <int N>
  __device__ void add(const float (&x)[N], const int32_t (&ids)[N]) {
    const float before = highest;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool better = x[i] > highest && x[i] <= kLargest;  // false for NaN
      highest = better ? x[i] : highest;
      id = better ? ids[i] : id;
    }
    if (highest > before) sum *= exp_fast(before - highest);
    const float from = reference();
#pragma unroll
    for (int i = 0; i < N; ++i) sum += isnan(x[i]) ? 0.0f : exp_fast(x[i] - from);
  }
  __device__ void join(const Summary& other) {
    const float top = fmaxf(highest, other.highest), from = top == -INFINITY ? 0.0f : top;
    sum = (highest == -INFINITY ? sum : sum * exp_fast(highest - from)) +
          (other.highest == -INFINITY ? other.sum : other.sum * exp_fast(other.highest - from));
    const bool theirs =
        other.highest > highest ||
        (other.highest == highest && static_cast<uint32_t>(other.id) < static_cast<uint32_t>(id));
    id = theirs ? other.id : id;
    highest = top;
  }
  __device__ void join_lanes() {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      Summary other;
      other.highest = __shfl_xor_sync(0xffffffffu, highest, offset);
      other.sum = __shfl_xor_sync(0xffffffffu, sum, offset);
      other.id = __shfl_xor_sync(0xffffffffu, id, offset);
      join(other);
    }
  }
};

// One cluster a row, one pass over it: each block sums up its share, the first joins the summaries.
__global__ void __launch_bounds__(kThreads) cross_entropy_forward_kernel(const CrossEntropyArgs a) {
  __shared__ Summary of_warps[kWarps], of_blocks[8];
  cluster_arrive();
  grid_dependency_wait();
  let_next_start();
  const unsigned size = cluster_size(), rank = cluster_rank();
  const int64_t row = blockIdx.x / size;
  const float* logits = a.logits + row * a.stride;
  const int64_t begin = rank * a.part, end = min(begin + a.part, a.vocab);
  Summary mine;
  const bool last = rank == 0 && threadIdx.x == 0;  // who joins the blocks
  const int64_t target = last ? a.targets[row] : -1;
  const float of_target = target >= 0 && target < a.vocab ? logits[target] : 0.0f;
  const int64_t packs_end = a.vectors ? begin + (max(end, begin) - begin) / 4 * 4 : begin;
  for (int64_t i = begin + threadIdx.x * 4; i < packs_end; i += kThreads * 4 * kLoads) {
    float x[4 * kLoads];
    int32_t ids[4 * kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t at = i + k * kThreads * 4;
      float4 v{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (at < packs_end) v = __ldcs(reinterpret_cast<const float4*>(logits + at));
      x[4 * k] = v.x, x[4 * k + 1] = v.y, x[4 * k + 2] = v.z, x[4 * k + 3] = v.w;
#pragma unroll
      for (int j = 0; j < 4; ++j) ids[4 * k + j] = static_cast<int32_t>(at + j);
    }
    mine.add(x, ids);
  }
  for (int64_t i = packs_end + threadIdx.x; i < end; i += kThreads * kLoads) {
    float x[kLoads];
    int32_t ids[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t at = i + k * kThreads;
      x[k] = at < end ? logits[at] : -INFINITY;
      ids[k] = static_cast<int32_t>(at);
    }
    mine.add(x, ids);
  }
  mine.join_lanes();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) of_warps[warp] = mine;
  cluster_wait();  // all blocks have started
  __syncthreads();
  if (warp == 0) {
    mine = lane < kWarps ? of_warps[lane] : Summary{};
    mine.join_lanes();
    if (lane == 0) *in_block(&of_blocks[rank], 0) = mine;
  }
  cluster_sync();
  if (!last) return;
  for (unsigned r = 1; r < size; ++r) mine.join(of_blocks[r]);
  a.argmax[row] = mine.id;
  float nll = 0;
  if (mine.id < 0 || target < -1 || target >= a.vocab) {
    nll = std::numeric_limits<float>::quiet_NaN();
  } else if (target >= 0) {  // the difference of scores first: it may be exact where they are large
    nll = mine.highest - of_target + logf(mine.sum);
  }
  a.nll[row] = nll;
}

}  // namespace

void cross_entropy(const Tensor& logits, const Tensor& targets, int64_t vocab, const CrossEntropy& result) {
  const int64_t T = logits.size(0), stride = logits.stride(0);
  if (T == 0) return;
  unsigned size = largest_cluster();  // as many blocks a row as fill the card twice
  while (size > 1 && T * size / 2 >= 2 * properties().multiprocessors) size /= 2;
  const CrossEntropyArgs args{
      .logits = logits.data<float>(),
      .stride = stride,
      .targets = targets.data<int32_t>(),
      .nll = result.nll.data<float>(),
      .argmax = result.argmax.data<int32_t>(),
      .vocab = vocab,
      .part = ((vocab + size - 1) / size + 31) / 32 * 32,
      .vectors = stride % 4 == 0 && reinterpret_cast<uintptr_t>(logits.raw()) % 16 == 0};
  launch({.grid = dim3(static_cast<unsigned>(T) * size),
          .block = dim3(kThreads),
          .overlaps_previous = true,
          .cluster = size},
         cross_entropy_forward_kernel, args);
}

}  // namespace ssm::cuda
