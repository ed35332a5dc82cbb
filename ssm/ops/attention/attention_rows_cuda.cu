// Attention of many tokens in f32: a block has 16 queries of a head, a warp four of them; tiles of 32 keys
// and values go by in shared memory, two under way.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/attention/attention_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kWarps = 4, kQueries = 4, kRows = kWarps * kQueries, kThreads = 32 * kWarps;

struct RowsArgs {
  AttentionOperands a;
  int row_bytes;
};

__global__ void __launch_bounds__(kThreads) attention_rows_kernel(const RowsArgs args) {
  const AttentionOperands& a = args.a;
  extern __shared__ __align__(16) char tiles[];
  const int tile_bytes = kTileTokens * args.row_bytes;
  float* const queries = reinterpret_cast<float*>(tiles + 4 * tile_bytes);  // [kRows, stride], scaled
  grid_dependency_wait();
  let_next_start();
  const Chunk chunk = chunk_of(a.batch, gridDim.x - 1 - blockIdx.x, kRows);
  if (chunk.sequence < 0) return;
  const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const int64_t slot = a.batch.slots[chunk.sequence];
  const int64_t first = a.begins[chunk.sequence] + chunk.index * kRows;
  const int rows = static_cast<int>(chunk.end - chunk.begin), chunks = a.stride / 4;
  const int64_t tile_count = (first + rows - 1) / kTileTokens + 1;
  const int warp = threadIdx.x / 32;
  const auto fetch = [&](int64_t tile) {
    const float* const page =
        tile < tile_count ? a.page<float>(slot, tile * kTileTokens / kPageTokens, kv_head) : nullptr;
    if (page) {
      const uint32_t keys = shared_address(tiles + tile % 2 * 2 * tile_bytes);
      load_tile<kTileTokens>(page, static_cast<int>(tile * kTileTokens % kPageTokens),
                             static_cast<int>(min(first + rows - tile * kTileTokens, int64_t{kTileTokens})),
                             a.stride, args.row_bytes, keys, keys + static_cast<uint32_t>(tile_bytes),
                             threadIdx.x, kThreads);
    }
    commit_copies();
  };
  fetch(0);
  fetch(1);
  for (int i = threadIdx.x; i < kRows * a.stride; i += kThreads) {
    const int row = i / a.stride;
    const float* const q = static_cast<const float*>(a.q) + ((chunk.begin + row) * a.heads + head) * a.stride;
    queries[i] = row < rows ? a.scale * q[i % a.stride] : 0.0f;
  }
  Attended<float, kQueries> attended;
  attended.clear();
  const int64_t position = first + warp * kQueries;  // of the warp's first query
  for (int64_t tile = 0; tile < tile_count; ++tile) {
    wait_for_copies<1>();
    __syncthreads();
    int seen[kQueries];
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      seen[q] =
          static_cast<int>(max(int64_t{0}, min(position + q + 1 - tile * kTileTokens, int64_t{kTileTokens})));
    }
    const char* const keys = tiles + tile % 2 * 2 * tile_bytes;
    if (seen[kQueries - 1] > 0) {
      attended.add(keys, keys + tile_bytes, args.row_bytes, chunks, queries + warp * kQueries * a.stride,
                   a.stride, seen);
    }
    __syncthreads();
    fetch(tile + 2);
  }
  wait_for_copies<0>();
  __syncthreads();
  const int ways = WeightedRows<float, kQueries>::ways(chunks), lane = threadIdx.x % 32;
  float* const sums = reinterpret_cast<float*>(tiles) + warp * ways * a.stride;
#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    const float total = warp_sum(attended.total[q]);
    attended.values.put(q, sums, chunks, a.stride);
    __syncwarp();
    const int row = warp * kQueries + q;
    const int64_t t = chunk.begin + row;
    if (row < rows) {
      float* const y = static_cast<float*>(a.y) + t * a.y_stride + int64_t{head} * a.D;
      for (int d = lane; d < a.D; d += 32) {
        float sum = 0.0f;
        for (int g = 0; g < ways; ++g) sum += sums[g * a.stride + d];
        y[d] = sum / total;
      }
      if (a.lse && lane == 0) a.lse[t * a.heads + head] = (attended.most[q] + log2f(total)) / kLog2e;
    }
    __syncwarp();
  }
}

}  // namespace

void attention_rows(const AttentionOperands& a) {
  const RowsArgs args{.a = a, .row_bytes = static_cast<int>(tile_row_bytes(a.stride, DType::f32))};
  const size_t bytes = 4 * size_t{kTileTokens} * static_cast<size_t>(args.row_bytes) +
                       sizeof(float) * kRows * static_cast<size_t>(a.stride);
  static const bool allowed =
      allow_shared_bytes(attention_rows_kernel,
                         std::min(size_t{200} * 1024, static_cast<size_t>(properties().max_shared_bytes)));
  (void)allowed;
  check_shared_bytes(bytes, a.D);
  launch({.grid = dim3(static_cast<unsigned>(chunk_numbers(a.batch, kRows)), static_cast<unsigned>(a.heads)),
          .block = dim3(kThreads),
          .shared_bytes = bytes,
          .overlaps_previous = true},
         attention_rows_kernel, args);
}

}  // namespace ssm::cuda
