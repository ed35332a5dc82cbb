// linear of some rows with a small matrix, in 16 bits: too many rows for every strip to read x by itself, too
// little work for the library to fill the card in one wave.
//
// A cluster of blocks takes up to 128 rows of W and shares K out; a block stages its part of x in shared
// memory, its warps multiply strips of W (linear_rows.cuh) by parts of that, and the blocks add one another's
// sums over distributed shared memory, in one order.
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"

namespace ssm::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 64;  // of x, a block
constexpr int kEights = 2;
constexpr int kDepth = 6;
constexpr int kSharedBytes = 160 << 10;

struct ClusterArgs {
  RowsArgs rows;
  int slice;     // values of K of a block; rows.part of them are a warp's
  int x_stride;  // of the staged x
};

// Blocks of (32, parts of K, strips) threads.
template <class X>
__global__ void __launch_bounds__(kWarps * 32)
    linear_cluster_kernel(const ClusterArgs a, const Plain<X> epilogue) {
  using Sums = Strip<X, kRows, kEights, kDepth>;
  extern __shared__ uint4 shared[];
  X* staged = reinterpret_cast<X*>(shared);                              // [kRows, x_stride]
  float* given = reinterpret_cast<float*>(staged + kRows * a.x_stride);  // [strips, parts, kSums]
  const int parts = blockDim.y, strips = blockDim.z, part = threadIdx.y, strip = threadIdx.z;
  const int thread = (strip * parts + part) * 32 + threadIdx.x, threads = kWarps * 32;
  const int cluster = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  const int group = static_cast<int>(blockIdx.x) / cluster, t0 = blockIdx.y * kRows;
  const int T = min(a.rows.T - t0, kRows);
  const int64_t first = int64_t{group} * strips * Sums::kWidth, n0 = first + strip * Sums::kWidth;
  const int begin = rank * a.slice, slice = max(0, min(a.rows.K - begin, a.slice));
  const int from = part * a.rows.part, K = min(slice - from, a.rows.part);
  const X* w = static_cast<const X*>(a.rows.w) + (n0 + threadIdx.x / 4) * a.rows.w_stride + begin + from;
  Sums sums;
  sums.read_weights(w, a.rows.w_stride, a.rows.N - n0, K);
  let_next_start();
  grid_dependency_wait();
  const X* x = static_cast<const X*>(a.rows.x) + t0 * a.rows.x_stride + begin;
  const int packs = slice / kPack<X>;
  for (int i = thread; i < T * packs; i += threads) {
    const int row = i / packs, k = i % packs * kPack<X>;
    copy_async(shared_address(staged + row * a.x_stride + k), x + row * a.rows.x_stride + k, true);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  sums.multiply_all(w, a.rows.w_stride, a.rows.N - n0, staged + from, a.x_stride, T, K);
  sums.give(given + (strip * parts + part) * Sums::kSums);
  __syncthreads();
  const int values = strips * Sums::kSums;
  for (int i = thread; i < values; i += threads) {
    const int s = i / Sums::kSums, j = i % Sums::kSums;
    float* at = given + s * parts * Sums::kSums + j;
    float sum = *at;
    for (int p = 1; p < parts; ++p) sum += at[p * Sums::kSums];
    *at = sum;
  }
  cluster_sync();
  const int share = (values + cluster - 1) / cluster;
  for (int i = rank * share + thread; i < min(values, (rank + 1) * share); i += threads) {
    const int s = i / Sums::kSums, j = i % Sums::kSums, t = j / Sums::kWidth;
    const int64_t n = first + s * Sums::kWidth + j % Sums::kWidth;
    if (t >= T || n >= a.rows.N) continue;
    typename Plain<X>::Held held;
    epilogue.read_parameters(held, n);
    float sum = 0;
#pragma unroll 4
    for (int r = 0; r < cluster; ++r)
      sum += *in_block(given + s * parts * Sums::kSums + j, static_cast<unsigned>(r));
    epilogue.write(held, t0 + t, n, sum);
  }
  cluster_sync();  // no block ends while another reads its sums
}

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

template <class X>
bool launch_cluster(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  ClusterArgs a{.rows = args_of(x, w), .slice = 0, .x_stride = 0};
  const int steps = (a.rows.K + kStep<X> - 1) / kStep<X>, N = static_cast<int>(a.rows.N);
  int cluster = static_cast<int>(largest_cluster());
  while (cluster > steps) cluster /= 2;
  a.slice = (steps + cluster - 1) / cluster * kStep<X>;
  // Many strips a block where there are enough of them to fill the card, else many parts.
  int strips = kWarps;
  while (strips > 1 && (N / (strips * 8 * kEights)) * cluster < properties().multiprocessors / 2 &&
         kWarps / strips * kStep<X> < a.slice) {
    strips /= 2;
  }
  const int parts = kWarps / strips;
  a.rows.part = round_up((a.slice + parts - 1) / parts, kStep<X>);
  a.x_stride = round_up(a.slice, 2 * kStep<X>) + kStep<X>;  // rows 64 bytes apart in the banks
  const size_t shared = sizeof(X) * static_cast<size_t>(kRows * a.x_stride) +
                        sizeof(float) * static_cast<size_t>(kWarps * kRows * 8 * kEights);
  if (shared > kSharedBytes) return false;
  static const bool allowed = allow_shared_bytes(linear_cluster_kernel<X>, kSharedBytes);
  static_cast<void>(allowed);
  const int groups = (N + strips * 8 * kEights - 1) / (strips * 8 * kEights);
  launch_clusters(static_cast<unsigned>(cluster),
                  {.grid = dim3(static_cast<unsigned>(groups * cluster),
                                static_cast<unsigned>((a.rows.T + kRows - 1) / kRows)),
                   .block = dim3(32, static_cast<unsigned>(parts), static_cast<unsigned>(strips)),
                   .shared_bytes = shared,
                   .overlaps_previous = true},
                  linear_cluster_kernel<X>, a, plain_of<X>(bias, y));
  return true;
}

}  // namespace

bool linear_some_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  if (x.dtype() == DType::f32 || properties().max_shared_bytes < kSharedBytes || !in_packs(x) ||
      !in_packs(w) || w.size(1) >= (1 << 20) || w.size(0) >= (1 << 20)) {
    return false;
  }
  bool done = false;
  dispatch(x.dtype(), "linear", [&](auto zero) {
    using X = decltype(zero);
    if constexpr (sizeof(X) == 2) done = launch_cluster<X>(x, w, bias, y);
  });
  return done;
}

}  // namespace ssm::cuda
