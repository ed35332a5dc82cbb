// Tokens are sorted by (id, position), then blocks add each id's rows in order: no atomics, the same bits
// always. Runs of one id are cut at multiples of kRun of the sorted, and the parts' sums are added in order
// by a second kernel: a task of sixteen symbols fills the card too. A token's place among the sorted is how
// many keys are smaller, counted by comparing with every other: 16,384 tokens take 2.7e8 comparisons, less
// than a radix sort's many launches; more tokens go in pieces.
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/embedding/embedding_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int64_t kPiece = 32768;
constexpr int kRun = 64;
constexpr int kThreads = 256;
constexpr int kTokens = 64;  // of a block that sorts: four threads a token
constexpr int kTile = 4096;  // keys in shared memory
constexpr int kAhead = 8;    // rows in flight

// sorted[place of t] = (its id, t). Keys id * T + t differ and have 32 bits; an id outside the vocabulary
// counts as `vocab`.
__global__ void __launch_bounds__(kThreads)
    embedding_sort_kernel(const int32_t* ids, int2* sorted, int T, int vocab) {
  __shared__ uint32_t tile[kTile];
  let_next_start();
  grid_dependency_wait();
  const auto id_of = [&](int t) { return ids[t] >= 0 && ids[t] < vocab ? ids[t] : vocab; };
  const auto key_of = [&](int t) {
    return t < T ? static_cast<uint32_t>(id_of(t)) * static_cast<uint32_t>(T) + static_cast<uint32_t>(t)
                 : UINT32_MAX;
  };
  const int part = threadIdx.x % 4, t = blockIdx.x * kTokens + threadIdx.x / 4;
  const uint32_t key = key_of(t);
  int place = 0;
  for (int start = 0; start < T; start += kTile) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTile; i += kThreads) tile[i] = key_of(start + i);
    __syncthreads();
    const int end = min(kTile, (T - start + 15) / 16 * 16);
#pragma unroll 8
    for (int i = 4 * part; i < end; i += 16) {
      const uint4 other = *reinterpret_cast<const uint4*>(tile + i);
      place += (other.x < key) + (other.y < key) + (other.z < key) + (other.w < key);
    }
  }
  place += __shfl_xor_sync(0xffffffffu, place, 1);
  place += __shfl_xor_sync(0xffffffffu, place, 2);
  if (t < T && part == 0) sorted[place] = make_int2(id_of(t), t);
}

struct RunsArgs {
  const int2* sorted;
  int T;
  const void* dy;
  int64_t dy_stride;
  float* dweight;
  int64_t dweight_stride, vocab, M;
  float* parts;  // [2 a window of kRun places, M]
};

__device__ __forceinline__ bool has_id(const RunsArgs& a, int place, int32_t id) {
  return place >= 0 && place < a.T && a.sorted[place].x == id;
}
// Where the sum of a part waits that begins in this window: of those that are not alone one at most goes on
// from the window before, and one at most goes on into the next.
__device__ __forceinline__ float* part_of(const RunsArgs& a, int window, bool first) {
  return a.parts + (2 * int64_t{window} + (first ? 1 : 0)) * a.M;
}

// Block x for the sorted token x, which has something to do where a part begins; block y for columns, V a
// thread.
template <int V, class X>
__global__ void __launch_bounds__(kThreads) embedding_backward_kernel(const RunsArgs a) {
  let_next_start();
  grid_dependency_wait();
  const int place = blockIdx.x, window = place / kRun, end = min(a.T, (window + 1) * kRun);
  const int32_t id = a.sorted[place].x;
  const bool first = !has_id(a, place - 1, id);
  if (id >= a.vocab || (!first && place % kRun != 0)) return;
  const int64_t m = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V;
  if (m >= a.M) return;
  const bool alone = first && !has_id(a, end, id);
  float* const to = alone ? a.dweight + id * a.dweight_stride + m : part_of(a, window, first) + m;
  const X* const dy = static_cast<const X*>(a.dy) + m;
  float sum[V] = {};
  if (alone) load<V>(sum, to);
  const auto token_at = [&](int i) {
    const int2 next = i < end ? a.sorted[i] : make_int2(-1, 0);
    return next.x == id ? next.y : -1;
  };
  int32_t token[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) token[i] = token_at(place + i);
  for (int at = place + kAhead; token[0] >= 0; at += kAhead) {
    Pack<X, V> row[kAhead];
    bool there[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      there[i] = token[i] >= 0;
      if (there[i]) row[i] = load_pack<V>(dy + token[i] * a.dy_stride);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {  // while the rows are on their way
      token[i] = there[kAhead - 1] ? token_at(at + i) : -1;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (!there[i]) continue;
      float v[V];
      widen<V>(v, row[i]);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += v[j];
    }
  }
  store<V>(to, sum);
}

// Block x for a window, if an id begins in it that goes on into the next.
__global__ void __launch_bounds__(kThreads) embedding_backward_join_kernel(const RunsArgs a) {
  let_next_start();
  grid_dependency_wait();
  const int window = blockIdx.x, end = (window + 1) * kRun;  // below T
  const int32_t id = a.sorted[end].x;
  if (id >= a.vocab || !has_id(a, end - 1, id)) return;
  if (has_id(a, window * kRun, id) && has_id(a, window * kRun - 1, id)) return;  // it began before
  const int64_t m = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (m >= a.M) return;
  float* const to = a.dweight + id * a.dweight_stride + m;
  float sum = *to + part_of(a, window, true)[m];
  for (int next = window + 1; has_id(a, next * kRun, id); next += kAhead) {
    float v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      v[i] = has_id(a, (next + i) * kRun, id) ? part_of(a, next + i, false)[m] : 0.0f;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) sum += v[i];
  }
  *to = sum;
}

unsigned blocks_of(int64_t n, int64_t part) { return static_cast<unsigned>((n + part - 1) / part); }

}  // namespace

void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight) {
  const int64_t T = ids.size(0), M = dy.size(1), vocab = dweight.size(0);
  if (T == 0 || M == 0 || vocab == 0) return;
  SSM_CHECK(vocab < INT32_MAX / 2, "embedding_backward: a vocabulary of {}", vocab);
  const int64_t most = std::min({T, kPiece, int64_t{UINT32_MAX} / (vocab + 1)});  // keys have 32 bits
  const auto aligned = [](const Tensor& t) {
    return t.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % (4 * size_of(t.dtype())) == 0;
  };
  const bool vectors = M % 4 == 0 && aligned(dy) && aligned(dweight);
  const int64_t lanes = vectors ? M / 4 : M, threads = std::min<int64_t>(kThreads, (lanes + 31) / 32 * 32);
  const Tensor sorted = Tensor::empty({most, 2}, DType::i32, kCuda);
  const Tensor parts = Tensor::empty({2 * ((most + kRun - 1) / kRun), M}, DType::f32, kCuda);
  auto* const pairs = reinterpret_cast<int2*>(sorted.raw());
  for (int64_t begin = 0; begin < T; begin += most) {
    const int64_t count = std::min(most, T - begin), windows = (count - 1) / kRun;  // that have a next
    launch({.grid = dim3(blocks_of(count, kTokens)), .block = dim3(kThreads), .overlaps_previous = true},
           embedding_sort_kernel, ids.data<int32_t>() + begin, pairs, static_cast<int>(count),
           static_cast<int>(vocab));
    const RunsArgs args{.sorted = pairs,
                        .T = static_cast<int>(count),
                        .dy = dy.raw() + begin * dy.stride(0) * static_cast<int64_t>(size_of(dy.dtype())),
                        .dy_stride = dy.stride(0),
                        .dweight = dweight.data<float>(),
                        .dweight_stride = dweight.stride(0),
                        .vocab = vocab,
                        .M = M,
                        .parts = parts.data<float>()};
    dispatch(dy.dtype(), "embedding_backward", [&](auto zero) {
      using X = decltype(zero);
      launch({.grid = dim3(static_cast<unsigned>(count), blocks_of(lanes, threads)),
              .block = dim3(static_cast<unsigned>(threads)),
              .overlaps_previous = true},
             vectors ? embedding_backward_kernel<4, X> : embedding_backward_kernel<1, X>, args);
    });
    if (windows == 0) continue;
    launch({.grid = dim3(static_cast<unsigned>(windows), blocks_of(M, kThreads)),
            .block = dim3(kThreads),
            .overlaps_previous = true},
           embedding_backward_join_kernel, args);
  }
}

}  // namespace ssm::cuda
