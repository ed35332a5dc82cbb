// By blocks of rows: the logits of a block in f32, one kernel that makes their gradient of them in the
// activations' type, and the two products of the backward. Rows without a target are computed too (the host
// does not see which they are); their gradient is 0.
#include <algorithm>
#include <limits>
#include <memory>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kLogitsBytes = int64_t{600} << 20;  // of a block, where 128 rows have no more
constexpr int kThreads = 256, kTotalThreads = 1024;
constexpr int kLoads = 7;          // of 16 bytes in flight a thread: two rounds of a vocabulary of 50,280
constexpr int64_t kShare = 12800;  // scores of a block: four blocks a multiprocessor keep theirs

struct LossArgs {
  const float* logits;
  void* dlogits;  // or null; may lie over the logits where blocks keep their scores
  int64_t stride, dstride;
  const int32_t* targets;
  const float* row_weights;  // or null
  float scale;
  int64_t vocab, columns, part;  // columns of dlogits: 0 from vocab on; a block's share of them
  float* losses;                 // [rows]
};

// The highest of some scores, and the sum of exp(score - highest). NaN stays NaN in `sum`.
struct Softmax {
  float highest = -INFINITY, sum = 0;
  __device__ void join(float other_highest, float other_sum) {
    const float top = fmaxf(highest, other_highest), from = top == -INFINITY ? 0.0f : top;
    sum = sum * exp_fast(highest - from) + other_sum * exp_fast(other_highest - from);
    highest = top;
  }
  template <int N, int V>
  __device__ void add(const float (&x)[N][V]) {
    float top = highest;
#pragma unroll
    for (int i = 0; i < N * V; ++i) top = fmaxf(top, x[i / V][i % V]);
    const float from = top == -INFINITY ? 0.0f : top;
    sum *= exp_fast(highest - from);
#pragma unroll
    for (int i = 0; i < N * V; ++i) sum += exp_fast(x[i / V][i % V] - from);
    highest = top;
  }
};

__device__ __forceinline__ Softmax join_lanes(Softmax mine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const float highest = __shfl_xor_sync(0xffffffffu, mine.highest, offset);
    mine.join(highest, __shfl_xor_sync(0xffffffffu, mine.sum, offset));
  }
  return mine;
}

// One cluster a row. Each block sums up its share and keeps it in shared memory (kKept), or reads it again;
// with the sum of all it makes the gradient.
template <bool kKept, class X>
__global__ void __launch_bounds__(kThreads) linear_cross_entropy_rows_kernel(const LossArgs a) {
  extern __shared__ float4 kept[];
  __shared__ Softmax of_warps[kThreads / 32], of_blocks[8];
  cluster_arrive();
  grid_dependency_wait();
  let_next_start();
  const unsigned size = cluster_size(), rank = cluster_rank();
  const int64_t row = blockIdx.x / size, begin = rank * a.part;
  const int64_t scores = max(int64_t{0}, min(a.part, a.vocab - begin));
  const int64_t columns = max(int64_t{0}, min(a.part, a.columns - begin));
  const float* const logits = a.logits + row * a.stride + begin;
  X* const dlogits = a.dlogits ? static_cast<X*>(a.dlogits) + row * a.dstride + begin : nullptr;
  const int32_t target = a.targets[row];
  const int first = threadIdx.x * 4;
  constexpr int kStep = kThreads * 4;
  if (target == -1) {
    cluster_wait();  // the logits that zeros may lie over are not needed
    for (int64_t i = first; dlogits && i < columns; i += kStep) store<4>(dlogits + i, {0, 0, 0, 0});
    if (rank == 0 && threadIdx.x == 0) a.losses[row] = 0;
    return;
  }
  const bool valid = target >= 0 && target < a.vocab;
  const float at_target = rank == 0 && valid ? logits[target] : 0.0f;
  // What is beyond the vocabulary counts for nothing.
  const auto read = [&](int64_t i, float(&x)[4]) {
    load<4>(x, logits + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = i + j < scores ? x[j] : -INFINITY;
  };
  Softmax mine;
  for (int64_t i = first; i < scores; i += kStep * kLoads) {
    float x[kLoads][4];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (i + k * kStep < scores) {
        read(i + k * kStep, x[k]);
      } else {
#pragma unroll
        for (float& v : x[k]) v = -INFINITY;
      }
    }
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (kKept && i + k * kStep < scores)
        kept[(i + k * kStep) / 4] = make_float4(x[k][0], x[k][1], x[k][2], x[k][3]);
    }
    mine.add(x);
  }
  mine = join_lanes(mine);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) of_warps[warp] = mine;
  cluster_wait();  // all blocks have started
  __syncthreads();
  if (warp == 0) {
    mine = join_lanes(lane < kThreads / 32 ? of_warps[lane] : Softmax{});
    if (lane < size) *in_block(&of_blocks[rank], lane) = mine;
  }
  cluster_sync();
  Softmax all;
  for (unsigned r = 0; r < size; ++r) all.join(of_blocks[r].highest, of_blocks[r].sum);
  const float weight = a.scale * (a.row_weights ? a.row_weights[row] : 1.0f);
  const float factor = valid ? weight : std::numeric_limits<float>::quiet_NaN();
  // The difference of scores first: it may be exact where they are large.
  if (rank == 0 && threadIdx.x == 0) a.losses[row] = factor * ((all.highest - at_target) + logf(all.sum));
  if (!dlogits) return;
  const float each = factor / all.sum;
  const int64_t mark = target - begin;
#pragma unroll 4
  for (int64_t i = first; i < columns; i += kStep) {
    float x[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (i < scores) {
      if constexpr (kKept)
        load<4>(x, reinterpret_cast<const float*>(kept + i / 4));
      else
        read(i, x);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = i + j < scores ? each * exp_fast(x[j] - all.highest) : 0.0f;
      if (i + j == mark) x[j] -= factor;
    }
    store<4>(dlogits + i, x);
  }
}

__global__ void __launch_bounds__(kTotalThreads)
    linear_cross_entropy_total_kernel(const float* losses, const int32_t* targets, int64_t T, float* loss,
                                      int64_t* count) {
  __shared__ double sums[32];
  __shared__ int64_t counts[32];
  let_next_start();
  grid_dependency_wait();
  double sum = 0;
  int64_t n = 0;
  for (int64_t t = threadIdx.x; t < T; t += blockDim.x) {
    sum += losses[t];
    n += targets[t] != -1;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    n += __shfl_xor_sync(0xffffffffu, n, offset);
  }
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum, counts[threadIdx.x / 32] = n;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kTotalThreads / 32; ++warp) sum += sums[warp], n += counts[warp];
  *loss = static_cast<float>(sum);
  *count = n;
}

int64_t rows_of_block(int64_t columns, int64_t T) {
  const int64_t most = std::max<int64_t>(128, kLogitsBytes / 4 / columns / 128 * 128);
  const int64_t blocks = (T + most - 1) / most;  // of nearly equal size
  return std::min(T, ((T + blocks - 1) / blocks + 127) / 128 * 128);
}

// How a row is shared out.
struct Shares {
  unsigned cluster = 1;
  int64_t part = 0;
  bool kept = false;
  explicit Shares(int64_t columns) {
    while (cluster < largest_cluster() && columns > cluster * kShare) cluster *= 2;
    part = ((columns + cluster - 1) / cluster + 31) / 32 * 32;
    kept = part * 4 + 1024 <= properties().max_shared_bytes;
  }
};

template <bool kKept, class X>
void launch_rows(const Shares& shares, const LossArgs& args, int64_t rows) {
  const auto kernel = linear_cross_entropy_rows_kernel<kKept, X>;
  const size_t bytes = kKept ? static_cast<size_t>(shares.part) * 4 : 0;
  if (kKept) {
    static const bool allowed =
        allow_shared_bytes(kernel, static_cast<size_t>(properties().max_shared_bytes) - 1024);
    (void)allowed;
  }
  launch({.grid = dim3(static_cast<unsigned>(rows) * shares.cluster),
          .block = dim3(kThreads),
          .shared_bytes = bytes,
          .overlaps_previous = true,
          .cluster = shares.cluster},
         kernel, args);
}

// The gradient of a block's logits: over the logits themselves where a row is kept before it is written.
Tensor dlogits_like(const Tensor& logits, DType dtype, bool kept) {
  const int64_t rows = logits.size(0), columns = logits.size(1);
  if (dtype == DType::f32) return logits;
  if (!kept) return Tensor::empty({rows, columns}, dtype, kCuda);
  return Tensor::from_memory(logits.raw(), {rows, 2 * columns}, dtype, std::make_shared<Tensor>(logits),
                             kCuda);
}

}  // namespace

void linear_cross_entropy(const Tensor& hidden, const Weight& dense, const Tensor& targets,
                          const Tensor& row_weights, float scale, int64_t vocab,
                          const LinearCrossEntropyGrads& grads, const LinearCrossEntropy& result) {
  const Tensor& weight = std::get<Tensor>(dense);
  const int64_t T = hidden.size(0), V = weight.size(0);
  if (T == 0) return;
  const bool gradient = grads.dhidden.defined() || grads.dweight.defined();
  const int64_t columns = (V + 7) / 8 * 8, most = rows_of_block(columns, T);  // rows begin at 16 bytes
  const Shares shares(columns);
  const Tensor all_logits = Tensor::empty({most, columns}, DType::f32, kCuda);
  const Tensor all_dlogits = gradient ? dlogits_like(all_logits, hidden.dtype(), shares.kept) : all_logits;
  const Tensor losses = Tensor::empty({T}, DType::f32, kCuda);
  for (int64_t begin = 0; begin < T; begin += most) {
    const int64_t rows = std::min(most, T - begin);
    const Tensor x = hidden.slice(0, begin, begin + rows);
    const Tensor logits = all_logits.slice(0, 0, rows).slice(1, 0, V);
    const Tensor dlogits = all_dlogits.slice(0, 0, rows).slice(1, 0, V);
    const LibraryProduct product{.a = x, .b = weight, .b_transposed = true, .c = logits};
    if (!library_product(product)) any_product(product);
    const LossArgs args{.logits = logits.data<float>(),
                        .dlogits = gradient ? dlogits.raw() : nullptr,
                        .stride = columns,
                        .dstride = all_dlogits.stride(0),
                        .targets = targets.data<int32_t>() + begin,
                        .row_weights = row_weights.defined() ? row_weights.data<float>() + begin : nullptr,
                        .scale = scale,
                        .vocab = vocab,
                        .columns = columns,
                        .part = shares.part,
                        .losses = losses.data<float>() + begin};
    dispatch(hidden.dtype(), "linear_cross_entropy", [&](auto zero) {
      using X = decltype(zero);
      shares.kept ? launch_rows<true, X>(shares, args, rows) : launch_rows<false, X>(shares, args, rows);
    });
    if (!gradient) continue;
    linear_backward(x, weight, dlogits,
                    {.dx = grads.dhidden.defined() ? grads.dhidden.slice(0, begin, begin + rows) : Tensor{},
                     .dweight = grads.dweight});
  }
  launch({.grid = dim3(1), .block = dim3(kTotalThreads), .overlaps_previous = true},
         linear_cross_entropy_total_kernel, losses.data<float>(), targets.data<int32_t>(), T,
         result.loss.data<float>(), result.count.data<int64_t>());
}

}  // namespace ssm::cuda
