// Tokens are sorted by (id, position), then one block for each distinct id adds its rows in order: no
// atomics, the same bits always. An id that many tokens have is cut into runs of kRun, whose sums are added
// in order by a second kernel: a task of sixteen symbols has runs enough to fill the card too. A token's
// place among the sorted is how many keys are smaller, counted by comparing with every other: 16,384 tokens
// take 2.7e8 comparisons, some 30 us, less than a radix sort's many launches; more tokens go in pieces of
// kPiece.
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
constexpr int kTile = 4096;  // ids in shared memory
constexpr int kAhead = 8;    // rows in flight

// sorted[place of t] = (its id, t, how many tokens of the same id stand before it, 0).
__global__ void __launch_bounds__(kThreads) embedding_sort_kernel(const int32_t* ids, int4* sorted, int T) {
  __shared__ int32_t tile[kTile];
  let_next_start();
  grid_dependency_wait();
  const int part = threadIdx.x % 4, t = blockIdx.x * kTokens + threadIdx.x / 4;
  const int32_t id = t < T ? ids[t] : 0;
  int smaller = 0, before = 0;
  for (int start = 0; start < T; start += kTile) {
    __syncthreads();
    // What is not there is no smaller than anything: the largest id, at a later position.
    for (int i = threadIdx.x; i < kTile; i += kThreads) tile[i] = start + i < T ? ids[start + i] : INT32_MAX;
    __syncthreads();
    const int end = min(kTile, (T - start + 15) / 16 * 16);
#pragma unroll 4
    for (int i = 4 * part; i < end; i += 16) {
      const int4 other = *reinterpret_cast<const int4*>(tile + i);
      const int earlier = t - start - i;  // how many of the four stand before t
      smaller += (other.x < id) + (other.y < id) + (other.z < id) + (other.w < id);
      before += ((other.x == id) & (earlier > 0)) + ((other.y == id) & (earlier > 1)) +
                ((other.z == id) & (earlier > 2)) + ((other.w == id) & (earlier > 3));
    }
  }
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    smaller += __shfl_xor_sync(0xffffffffu, smaller, offset);
    before += __shfl_xor_sync(0xffffffffu, before, offset);
  }
  if (t < T && part == 0) sorted[smaller + before] = make_int4(id, t, before, 0);
}

struct RunsArgs {
  const int4* sorted;
  int T;
  const void* dy;
  int64_t dy_stride;
  float* dweight;
  int64_t dweight_stride, vocab, M;
  float* parts;  // [slots, M]
};

// Where the sum of a run that begins at `place` waits, if its id has several. Of the runs that begin among
// kRun places, one at most is an id's first and one at most a later one, since all but an id's last are
// whole.
__device__ __forceinline__ int64_t slot_of(int place, bool first) {
  return 2 * int64_t{place / kRun} + (first ? 1 : 0);
}
__device__ __forceinline__ bool has_id(const RunsArgs& a, int place, int32_t id) {
  return place < a.T && a.sorted[place].x == id;
}

// Block x for the sorted token x, which has something to do where a run begins; block y for columns, V a
// thread.
template <int V, class X>
__global__ void __launch_bounds__(kThreads) embedding_backward_kernel(const RunsArgs a) {
  let_next_start();
  grid_dependency_wait();
  const int place = blockIdx.x;
  const int4 first = a.sorted[place];
  const int32_t id = first.x;
  if (id < 0 || id >= a.vocab || first.z % kRun != 0) return;
  const int64_t m = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V;
  if (m >= a.M) return;
  const bool several = first.z > 0 || has_id(a, place + kRun, id);
  float* const to =
      several ? a.parts + slot_of(place, first.z == 0) * a.M + m : a.dweight + id * a.dweight_stride + m;
  const X* const dy = static_cast<const X*>(a.dy) + m;
  float sum[V] = {};
  if (!several) load<V>(sum, to);
  const auto token_at = [&](int i) {
    const int4 next = i < a.T ? a.sorted[i] : make_int4(-1, 0, 0, 0);
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
    const bool more = there[kAhead - 1] && at < place + kRun;
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      token[i] = more ? token_at(at + i) : -1;  // while the rows are on their way
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

// Block x for the sorted token x, which has something to do where an id of several runs begins.
__global__ void __launch_bounds__(kThreads) embedding_backward_join_kernel(const RunsArgs a) {
  let_next_start();
  grid_dependency_wait();
  const int place = blockIdx.x;
  const int4 first = a.sorted[place];
  const int32_t id = first.x;
  if (id < 0 || id >= a.vocab || first.z != 0 || !has_id(a, place + kRun, id)) return;
  const int64_t m = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (m >= a.M) return;
  float* const to = a.dweight + id * a.dweight_stride + m;
  float sum = *to + a.parts[slot_of(place, true) * a.M + m];
  for (int at = place + kRun; has_id(a, at, id); at += kAhead * kRun) {
    float v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int next = at + i * kRun;
      v[i] = has_id(a, next, id) ? a.parts[slot_of(next, false) * a.M + m] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) sum += v[i];
  }
  *to = sum;
}

unsigned blocks_of(int64_t n, int64_t part) { return static_cast<unsigned>((n + part - 1) / part); }

}  // namespace

void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight) {
  const int64_t T = ids.size(0), M = dy.size(1), most = std::min(T, kPiece);
  if (T == 0 || M == 0) return;
  const auto aligned = [](const Tensor& t) {
    return t.stride(0) % 4 == 0 && reinterpret_cast<uintptr_t>(t.raw()) % (4 * size_of(t.dtype())) == 0;
  };
  const bool vectors = M % 4 == 0 && aligned(dy) && aligned(dweight);
  const int64_t lanes = vectors ? M / 4 : M, threads = std::min<int64_t>(kThreads, (lanes + 31) / 32 * 32);
  const Tensor sorted = Tensor::empty({most, 4}, DType::i32, kCuda);
  const Tensor parts = Tensor::empty({2 * ((most + kRun - 1) / kRun), M}, DType::f32, kCuda);
  for (int64_t begin = 0; begin < T; begin += kPiece) {
    const auto count = static_cast<int>(std::min(kPiece, T - begin));
    const auto tokens = static_cast<unsigned>(count);
    launch({.grid = dim3(blocks_of(count, kTokens)), .block = dim3(kThreads), .overlaps_previous = true},
           embedding_sort_kernel, ids.data<int32_t>() + begin, reinterpret_cast<int4*>(sorted.raw()), count);
    const RunsArgs args{.sorted = reinterpret_cast<const int4*>(sorted.raw()),
                        .T = count,
                        .dy = dy.raw() + begin * dy.stride(0) * static_cast<int64_t>(size_of(dy.dtype())),
                        .dy_stride = dy.stride(0),
                        .dweight = dweight.data<float>(),
                        .dweight_stride = dweight.stride(0),
                        .vocab = dweight.size(0),
                        .M = M,
                        .parts = parts.data<float>()};
    dispatch(dy.dtype(), "embedding_backward", [&](auto zero) {
      using X = decltype(zero);
      launch({.grid = dim3(tokens, blocks_of(lanes, threads)),
              .block = dim3(static_cast<unsigned>(threads)),
              .overlaps_previous = true},
             vectors ? embedding_backward_kernel<4, X> : embedding_backward_kernel<1, X>, args);
    });
    if (count <= kRun) continue;
    launch({.grid = dim3(tokens, blocks_of(M, kThreads)), .block = dim3(kThreads), .overlaps_previous = true},
           embedding_backward_join_kernel, args);
  }
}

}  // namespace ssm::cuda
