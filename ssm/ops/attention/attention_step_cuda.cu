// Attention of one token a sequence: the time is that of reading the keys and values once.
//
// A block has a head of keys of one sequence, up to Q of its queries, and a share of the tokens; each of its
// warps takes tiles of 16 tokens in turn, through its own shared memory. Other warps work while one waits:
// many small blocks a multiprocessor are faster than two tiles of a warp under way. Tiles that earlier steps
// wrote are asked for before this step's queries are there. The warp that has the newest token's tile rotates
// its key and writes it, and the value, to the tile and to the page. Where several blocks share the tokens,
// the last one to end adds up what they found.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/attention/attention_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kWarps = 4, kMaxWarps = 8;
constexpr int kTilesOfWarp = 2;  // before another block takes part

struct StepArgs {
  AttentionOperands a;
  Rotary rotary;
  int splits;
  int query_blocks;   // of a head of keys
  float* partial;     // [B, H, splits, stride + 2]: sums, greatest score, sum of exponentials
  int32_t* counters;  // [slots, heads of keys, query blocks], zeros before and after
  int row_bytes;
};

template <class T, int Q>
__global__ void __launch_bounds__(32 * kMaxWarps)
    attention_step_kernel(const __grid_constant__ StepArgs args) {
  const AttentionOperands& a = args.a;
  extern __shared__ __align__(16) char tiles[];
  __shared__ float2 turns[kMaxHeadDim / 2];
  __shared__ float most[kMaxWarps][Q], total[kMaxWarps][Q];
  __shared__ int last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int tile_bytes = kStepTileTokens * args.row_bytes;
  char* const keys = tiles + warp * 2 * tile_bytes;
  char* const values = keys + tile_bytes;
  float* const queries = reinterpret_cast<float*>(tiles + warps * 2 * tile_bytes);  // [Q, stride]
  const int b = blockIdx.z, group = a.heads / a.kv_heads;
  const int kv_head = blockIdx.y / args.query_blocks;
  const int first = kv_head * group + blockIdx.y % args.query_blocks * Q;  // head
  const int count = min(Q, (kv_head + 1) * group - first);
  const int64_t slot = a.batch.slots[b], position = a.begins[b];
  const int64_t tile_count = position < 0 ? 0 : position / kStepTileTokens + 1;
  const int64_t wanted = (tile_count + kTilesOfWarp * warps - 1) / (kTilesOfWarp * warps);
  const int64_t active = max(int64_t{1}, min(int64_t{args.splits}, wanted)), step = active * warps;  // blocks
  const int chunks = a.stride / kChunk<T>;

  int64_t next = blockIdx.x * warps + warp;
  const auto fetch = [&] {
    T* page = next < tile_count ? a.page<T>(slot, next * kStepTileTokens / kPageTokens, kv_head) : nullptr;
    if (page) {
      const int64_t rows = position - next * kStepTileTokens;  // without the newest, which no page holds yet
      const uint32_t to = shared_address(keys);
      load_tile<kStepTileTokens>(page, static_cast<int>(next * kStepTileTokens % kPageTokens),
                                 static_cast<int>(min(rows, int64_t{kStepTileTokens})), a.stride,
                                 args.row_bytes, to, to + static_cast<uint32_t>(tile_bytes), lane, 32);
    }
    commit_copies();
    next += step;
  };
  if (blockIdx.x < active) fetch();
  for (int i = threadIdx.x; i < args.rotary.half; i += blockDim.x)
    turns[i] = cosine_and_sine(args.rotary, position, i);
  grid_dependency_wait();
  let_next_start();
  if (blockIdx.x >= active) return;
  __syncthreads();
  const T* const row = static_cast<const T*>(a.qkv) + b * a.qkv_stride;
  // Of the newest token, where this block's share holds it: its key and value as a page keeps them.
  const bool has_newest = position >= 0 && position / kStepTileTokens / warps % active == blockIdx.x;
  T* const newest_key = reinterpret_cast<T*>(queries + Q * a.stride);
  T* const newest_value = newest_key + a.stride;
  for (int d = threadIdx.x; d < a.stride; d += blockDim.x) {
    const bool there = d < a.D;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const float x =
          there && q < count ? rotated(row + a.query_column(first + q), d, args.rotary.half, turns) : 0.0f;
      queries[q * a.stride + d] = a.scale * x;
    }
    if (!has_newest) continue;
    newest_key[d] =
        from_f32<T>(there ? rotated(row + a.key_column(kv_head), d, args.rotary.half, turns) : 0.0f);
    newest_value[d] = there ? row[a.value_column(kv_head) + d] : from_f32<T>(0.0f);
  }
  __syncthreads();

  Attended<T, Q, kStepTileTokens> attended;
  attended.clear();
  for (int64_t tile = blockIdx.x * warps + warp; tile < tile_count; tile += step) {
    wait_for_copies<0>();
    __syncwarp();
    T* const page = a.page<T>(slot, tile * kStepTileTokens / kPageTokens, kv_head);
    if (page) {
      const int64_t newest = position - tile * kStepTileTokens;
      if (newest < kStepTileTokens) {
        T* const key_row = page + position % kPageTokens * a.stride;
        for (int c = lane; c < 2 * chunks; c += 32) {
          const int at = (c < chunks ? c : c - chunks) * kChunk<T>;
          const uint4 part = *reinterpret_cast<const uint4*>((c < chunks ? newest_key : newest_value) + at);
          char* const tile_row = (c < chunks ? keys : values) + newest * args.row_bytes;
          *reinterpret_cast<uint4*>(reinterpret_cast<T*>(tile_row) + at) = part;
          *reinterpret_cast<uint4*>(key_row + (c < chunks ? 0 : kPageTokens * a.stride) + at) = part;
        }
        __syncwarp();
      }
      int seen[Q];
#pragma unroll
      for (int q = 0; q < Q; ++q) seen[q] = static_cast<int>(min(newest + 1, int64_t{kStepTileTokens}));
      attended.add(keys, values, args.row_bytes, chunks, queries, a.stride, seen);
    }
    __syncwarp();
    fetch();
  }
  wait_for_copies<0>();
  __syncthreads();

  // All warps' sums, [warps, ways, stride] of each query in turn, where the tiles were.
  const int ways = WeightedRows<T, Q>::ways(chunks);
  float* const sums = reinterpret_cast<float*>(tiles);
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const float sum = warp_sum(attended.total[q]);
    if (lane == 0) most[warp][q] = attended.most[q], total[warp][q] = sum;
    attended.values.put(q, sums + (q * warps + warp) * ways * a.stride, chunks, a.stride);
  }
  __syncthreads();
  float* const partial = args.partial + (int64_t{b} * a.heads + first) * args.splits * (a.stride + 2);
  const auto finish = [&](int q, int d, float sum, float all, float top) {
    T* const y = static_cast<T*>(a.y) + b * a.y_stride + int64_t{first + q} * a.D;
    y[d] = from_f32<T>(all != 0.0f ? sum / all : 0.0f);
    if (a.lse && d == 0) a.lse[int64_t{b} * a.heads + first + q] = (top + log2f(all)) / kLog2e;
  };
  for (int i = threadIdx.x; i < count * a.D; i += blockDim.x) {
    const int q = i / a.D, d = i % a.D;
    float top = -INFINITY, sum = 0.0f, all = 0.0f;
    for (int w = 0; w < warps; ++w) top = fmaxf(top, most[w][q]);
    for (int w = 0; w < warps && top > -INFINITY; ++w) {
      const float factor = exp2_fast(most[w][q] - top);
      float part = 0.0f;
      for (int g = 0; g < ways; ++g) part += sums[((q * warps + w) * ways + g) * a.stride + d];
      sum = fmaf(factor, part, sum);
      all = fmaf(factor, total[w][q], all);
    }
    if (active == 1) {
      finish(q, d, sum, all, top);
      continue;
    }
    float* const mine = partial + (int64_t{q} * args.splits + blockIdx.x) * (a.stride + 2);
    mine[d] = sum;
    if (d == 0) mine[a.stride] = top, mine[a.stride + 1] = all;
  }
  if (active == 1) return;

  __threadfence();
  __syncthreads();
  int32_t* const counter = args.counters + slot * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == active - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < count * a.D; i += blockDim.x) {
    const int q = i / a.D, d = i % a.D;
    const float* const parts = partial + int64_t{q} * args.splits * (a.stride + 2);
    float top = -INFINITY, sum = 0.0f, all = 0.0f;
    for (int64_t s = 0; s < active; ++s) top = fmaxf(top, __ldcg(parts + s * (a.stride + 2) + a.stride));
    for (int64_t s = 0; s < active && top > -INFINITY; ++s) {
      const float* const part = parts + s * (a.stride + 2);
      const float factor = exp2_fast(__ldcg(part + a.stride) - top);
      sum = fmaf(factor, __ldcg(part + d), sum);
      all = fmaf(factor, __ldcg(part + a.stride + 1), all);
    }
    finish(q, d, sum, all, top);
  }
}

template <class T, int Q>
void launch_step(StepArgs args, DType type, KvCache& kv) {
  const AttentionOperands& a = args.a;
  constexpr size_t kMost = 200 * 1024;
  args.row_bytes = static_cast<int>(tile_row_bytes(a.stride, type));
  const size_t warp_bytes = size_t{2} * kStepTileTokens * static_cast<size_t>(args.row_bytes);
  const size_t query_bytes = (sizeof(float) * Q + 2 * sizeof(T)) * static_cast<size_t>(a.stride);
  const size_t sum_bytes = sizeof(float) * Q * size_t{WeightedRows<T, Q>::kFloats};
  const size_t each = std::max(warp_bytes, sum_bytes);
  const auto limit = std::min(kMost, static_cast<size_t>(properties().max_shared_bytes));
  // Where few sequences leave the card empty, more of a text is under way in a block.
  const bool few = a.batch.size * a.kv_heads <= properties().multiprocessors;
  const size_t warps = std::clamp<size_t>((limit - query_bytes) / each, 1, few ? kMaxWarps : kWarps);
  const int group = a.heads / a.kv_heads;
  args.query_blocks = (group + Q - 1) / Q;
  const int64_t blocks = a.batch.size * a.kv_heads * args.query_blocks;
  args.splits =
      static_cast<int>(std::clamp<int64_t>(4 * int64_t{properties().multiprocessors} / blocks, 1, 64));
  const Tensor partial =
      args.splits > 1 ? Tensor::empty({a.batch.size * a.heads * args.splits, a.stride + 2}, DType::f32, kCuda)
                      : Tensor();
  args.partial = partial.defined() ? partial.data<float>() : nullptr;
  args.counters = kv.counters(int64_t{a.kv_heads} * args.query_blocks);
  const size_t bytes = warps * each + query_bytes;
  check_shared_bytes(bytes, a.D);
  static const bool allowed = allow_shared_bytes(
      attention_step_kernel<T, Q>, std::min(kMost, static_cast<size_t>(properties().max_shared_bytes)));
  (void)allowed;
  launch(
      {.grid = dim3(static_cast<unsigned>(args.splits), static_cast<unsigned>(a.kv_heads * args.query_blocks),
                    static_cast<unsigned>(a.batch.size)),
       .block = dim3(static_cast<unsigned>(32 * warps)),
       .shared_bytes = bytes,
       .overlaps_previous = true},
      attention_step_kernel<T, Q>, args);
}

}  // namespace

void attention_step(const AttentionOperands& a, const Rotary& rotary, DType type, KvCache& kv) {
  StepArgs args{};
  args.a = a;
  args.rotary = rotary;
  const int group = a.heads / a.kv_heads;
  dispatch(type, "attention", [&](auto zero) {
    using T = decltype(zero);
    if (group == 1) {
      launch_step<T, 1>(args, type, kv);
    } else if (group == 2) {
      launch_step<T, 2>(args, type, kv);
    } else {
      launch_step<T, 4>(args, type, kv);
    }
  });
}

}  // namespace ssm::cuda
