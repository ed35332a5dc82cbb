// What attention's kernels share: operands, where keys and values lie, rotation, and a tile of keys against a
// few queries.
#pragma once

#include "ssm/core/cuda.h"
#include "ssm/core/error.h"
#include "ssm/ops/attention/attention_cuda.h"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int kPageTokens = static_cast<int>(KvCache::kPageTokens);

struct AttentionOperands {
  const void* qkv;  // [T, (H + 2 Hk) D]
  int64_t qkv_stride;
  void* q;  // [T, H, stride]: rotated queries, of qkv's type, zeros behind D
  void* y;  // [T, H D]
  int64_t y_stride;
  float* lse;             // [T, H], or null
  const int64_t* begins;  // [B]: what each slot held before
  Batch batch;
  const KvCache::Table* table;
  int heads, kv_heads, D;
  int stride;  // elements of a row of keys, values or q
  bool by_head;
  float scale;  // of scores as powers of two: log2(e) / sqrt(D)

  __device__ __forceinline__ int64_t query_column(int head) const {
    return int64_t{by_head ? 3 * head : head} * D;
  }
  __device__ __forceinline__ int64_t key_column(int head) const {
    return int64_t{by_head ? 3 * head + 1 : heads + head} * D;
  }
  __device__ __forceinline__ int64_t value_column(int head) const {
    return int64_t{by_head ? 3 * head + 2 : heads + kv_heads + head} * D;
  }
  // The keys of one head in a page, whose values follow them; null where the slot has no such page.
  template <class T>
  __device__ __forceinline__ T* page(int64_t slot, int64_t index, int head) const {
    if (index >= table->capacity) return nullptr;
    auto* page = reinterpret_cast<T*>(table->pages[slot * table->capacity + index]);
    return page ? page + int64_t{head} * 2 * kPageTokens * stride : nullptr;
  }
};

// A token's pair (i, i + half) makes position * turns[i] turns.
struct Rotary {
  int half;
  double turns[kMaxHeadDim / 2];
};

// Whole turns are taken off in double: in f32 an angle would be off by 0.004 at position 100,000.
__device__ __forceinline__ float2 cosine_and_sine(const Rotary& rotary, int64_t position, int i) {
  const double turns = static_cast<double>(position) * rotary.turns[i];
  float2 turn;
  sincospif(static_cast<float>(2 * (turns - rint(turns))), &turn.y, &turn.x);
  return turn;
}

// Element d of x [D] after the rotation, or with `sign` -1 after the one back; `turns` [half].
template <class T>
__device__ __forceinline__ float rotated(const T* x, int d, int half, const float2* turns,
                                         float sign = 1.0f) {
  const float value = to_f32(x[d]);
  if (d >= 2 * half) return value;
  if (d < half) return value * turns[d].x - sign * to_f32(x[d + half]) * turns[d].y;
  return value * turns[d - half].x + sign * to_f32(x[d - half]) * turns[d - half].y;
}

inline constexpr int kTileTokens = 32;      // of a tile of prompts, one a lane; half a page
inline constexpr int kStepTileTokens = 16;  // of one of steps: two lanes a token

// Bytes of a row of a tile in shared memory: an odd number of 16 bytes, so that rows fall into other banks.
inline int64_t tile_row_bytes(int64_t stride, DType type) {
  return stride * static_cast<int64_t>(size_of(type)) + 16;
}

template <class T>
inline constexpr int kChunk = 16 / sizeof(T);  // elements of 16 bytes

// `threads` threads copy the rows [begin, end) of keys and values from a page to two tiles, and zeros after
// them.
template <int kTokens, class T>
__device__ __forceinline__ void load_tile(const T* page, int begin, int rows, int stride, int row_bytes,
                                          uint32_t keys, uint32_t values, int thread, int threads) {
  const int chunks = stride / kChunk<T>, rows_on = threads / chunks, chunks_on = threads % chunks;
  int row = thread / chunks, chunk = thread % chunks;
  while (row < kTokens) {
    const uint32_t to = static_cast<uint32_t>(row * row_bytes + 16 * chunk);
    const T* from = page + (begin + row) * stride + chunk * kChunk<T>;
    copy_async(keys + to, from, row < rows);
    copy_async(values + to, from + kPageTokens * stride, row < rows);
    row += rows_on;
    chunk += chunks_on;
    if (chunk >= chunks) ++row, chunk -= chunks;
  }
}

// A warp takes a tile against Q vectors of f32, [Q, stride] in shared memory too.

// Of the row of this lane, lane % kTokens, and each vector. Lanes that share a row take its chunks in turn.
template <class T, int Q, int kTokens = kTileTokens>
__device__ __forceinline__ void dot_rows(const char* tile, int row_bytes, int chunks, const float* vectors,
                                         int stride, float (&to)[Q]) {
  constexpr int kShare = 32 / kTokens;
  const int lane = threadIdx.x % 32;
  const char* const row = tile + lane % kTokens * row_bytes;
#pragma unroll
  for (int q = 0; q < Q; ++q) to[q] = 0.0f;
  for (int c = lane / kTokens; c < chunks; c += kShare) {
    float k[kChunk<T>];
    load<kChunk<T>>(k, reinterpret_cast<const T*>(row + 16 * c));
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int e = 0; e < kChunk<T>; e += 4) {
        const float4 x = *reinterpret_cast<const float4*>(vectors + q * stride + c * kChunk<T> + e);
        to[q] = fmaf(k[e], x.x, to[q]);
        to[q] = fmaf(k[e + 1], x.y, to[q]);
        to[q] = fmaf(k[e + 2], x.z, to[q]);
        to[q] = fmaf(k[e + 3], x.w, to[q]);
      }
    }
  }
#pragma unroll
  for (int share = kTokens; share < 32; share *= 2) {
#pragma unroll
    for (int q = 0; q < Q; ++q) to[q] += __shfl_xor_sync(0xffffffffu, to[q], share);
  }
}

// Sums of rows times weights, for Q of them: a lane has chunk `lane % chunks` (and the one 32 further) of
// every `ways`th row.
template <class T, int Q>
struct WeightedRows {
  static constexpr int kSlots = sizeof(T) == 4 ? 2 : 1;
  static constexpr int kFloats = 32 * kSlots * kChunk<T>;  // of a warp and a vector, at most
  float sums[Q][kSlots][kChunk<T>];

  __device__ __forceinline__ void scale(int q, float factor) {
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) sums[q][s][e] *= factor;
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
#pragma unroll
        for (int e = 0; e < kChunk<T>; ++e) sums[q][s][e] = 0.0f;
      }
    }
  }

  static __device__ __forceinline__ int ways(int chunks) { return chunks < 32 ? 32 / chunks : 1; }

  // `weights` are those of row lane % kTokens.
  template <int kTokens = kTileTokens>
  __device__ __forceinline__ void add(const char* tile, int row_bytes, int chunks,
                                      const float (&weights)[Q]) {
    const int lane = threadIdx.x % 32, step = ways(chunks);
    const int way = chunks < 32 ? lane / chunks : 0, chunk = chunks < 32 ? lane % chunks : lane;
    for (int t = 0; t < kTokens; t += step) {
      const int row = t + way;
      const bool mine = way < step && row < kTokens;
      float weight[Q];
#pragma unroll
      for (int q = 0; q < Q; ++q) weight[q] = __shfl_sync(0xffffffffu, weights[q], mine ? row : 0);
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (!mine || chunk + 32 * s >= chunks) continue;
        float v[kChunk<T>];
        load<kChunk<T>>(v, reinterpret_cast<const T*>(tile + row * row_bytes + 16 * (chunk + 32 * s)));
#pragma unroll
        for (int q = 0; q < Q; ++q) {
#pragma unroll
          for (int e = 0; e < kChunk<T>; ++e) sums[q][s][e] = fmaf(weight[q], v[e], sums[q][s][e]);
        }
      }
    }
  }

  // The sums of q to `to` [ways, stride], which are still to be added up.
  __device__ __forceinline__ void put(int q, float* to, int chunks, int stride) const {
    const int lane = threadIdx.x % 32;
    const int way = chunks < 32 ? lane / chunks : 0, chunk = chunks < 32 ? lane % chunks : lane;
    if (way >= ways(chunks)) return;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (chunk + 32 * s >= chunks) continue;
#pragma unroll
      for (int e = 0; e < kChunk<T>; ++e) to[way * stride + (chunk + 32 * s) * kChunk<T> + e] = sums[q][s][e];
    }
  }
};

// What a warp has seen of the tokens for Q queries: the greatest score (as a power of two), this lane's part
// of the sum of exponentials, and the values weighted by them.
template <class T, int Q, int kTokens = kTileTokens>
struct Attended {
  float most[Q], total[Q];
  WeightedRows<T, Q> values;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int q = 0; q < Q; ++q) most[q] = -INFINITY, total[q] = 0.0f;
    values.clear();
  }

  // A tile of kTokens. Query q, scaled, sees the first `seen[q]` tokens of the tile, at least one in the
  // first tile.
  __device__ __forceinline__ void add(const char* key_tile, const char* value_tile, int row_bytes, int chunks,
                                      const float* queries, int stride, const int (&seen)[Q]) {
    float score[Q];
    dot_rows<T, Q, kTokens>(key_tile, row_bytes, chunks, queries, stride, score);
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      if (static_cast<int>(threadIdx.x % kTokens) >= seen[q]) score[q] = -INFINITY;
      float top = score[q];
#pragma unroll
      for (int offset = kTokens / 2; offset > 0; offset /= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
      top = fmaxf(top, most[q]);
      const float factor = exp2_fast(most[q] - top);
      score[q] = exp2_fast(score[q] - top);
      most[q] = top;
      total[q] = total[q] * factor + (threadIdx.x % 32 < kTokens ? score[q] : 0.0f);
      values.scale(q, factor);
    }
    values.template add<kTokens>(value_tile, row_bytes, chunks, score);
  }
};

inline void check_shared_bytes(size_t bytes, int D) {
  const auto most = static_cast<size_t>(properties().max_shared_bytes);
  SSM_CHECK(bytes <= most, "attention: heads of {} elements need {} KiB of shared memory, this card has {}",
            D, bytes >> 10, most >> 10);
}

// One token a sequence: rotates and appends by itself.
void attention_step(const AttentionOperands& a, const Rotary& rotary, DType type, KvCache& kv);
// Any lengths, with a.q and the pages filled: 16 bits on tensor cores, f32 without.
void attention_matrix(const AttentionOperands& a, DType type);
void attention_rows(const AttentionOperands& a);
// With q, y and lse as the forward had them.
void attention_gradients(const AttentionOperands& a, const Rotary& rotary, const Tensor& dy,
                         const Tensor& dqkv);

}  // namespace ssm::cuda
