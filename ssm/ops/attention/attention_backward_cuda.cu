// The gradient of attention, in f32 from activations of any type: one kernel has queries and sees keys go by,
// for dq, another has keys and sees queries go by, for dk and dv, so that nothing is added to from two
// places.
#include <algorithm>

#include "ssm/core/launch.cuh"
#include "ssm/ops/attention/attention_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kWarps = 4, kEach = 4, kRows = kWarps * kEach, kThreads = 32 * kWarps;

struct BackwardArgs {
  AttentionOperands a;  // y, lse and q of the forward; begins: of the batch's own tokens
  Rotary rotary;
  const void* dy;  // [T, H D]
  int64_t dy_stride;
  void* dy_rows;  // [T, H, stride]: dy, zeros behind D
  float* along;   // [T, H]: dy . y
  void* dqkv;
  int64_t dqkv_stride;
  int row_bytes;
};

template <class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ BackwardArgs args) {
  const AttentionOperands& a = args.a;
  const int64_t t = blockIdx.x;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int head = warp; head < a.heads; head += kWarps) {
    const T* const y = static_cast<const T*>(a.y) + t * a.y_stride + int64_t{head} * a.D;
    const T* const dy = static_cast<const T*>(args.dy) + t * args.dy_stride + int64_t{head} * a.D;
    T* const to = static_cast<T*>(args.dy_rows) + (t * a.heads + head) * a.stride;
    float sum = 0.0f;
    for (int d = lane; d < a.stride; d += 32) {
      if (d < a.D) sum = fmaf(to_f32(dy[d]), to_f32(y[d]), sum);
      to[d] = d < a.D ? dy[d] : from_f32<T>(0.0f);
    }
    sum = warp_sum(sum);
    if (lane == 0) args.along[t * a.heads + head] = sum;
  }
}

// Shared memory of both kernels: two pairs of tiles, then two sets of vectors.
struct Shared {
  char* tiles;
  int tile_bytes;
  float *first, *second;  // [kRows, stride] each

  __device__ Shared(char* memory, const BackwardArgs& args)
      : tiles(memory),
        tile_bytes(kTileTokens * args.row_bytes),
        first(reinterpret_cast<float*>(memory + 4 * tile_bytes)),
        second(first + kRows * args.a.stride) {}
  __device__ char* tile(int64_t index) const { return tiles + index % 2 * 2 * tile_bytes; }
};

// Row `row` of `rows` tokens of q or dy, or zeros.
template <class T>
__device__ __forceinline__ float row_value(const void* from, const AttentionOperands& a, int64_t t, int head,
                                           int d, bool there) {
  return there ? to_f32(static_cast<const T*>(from)[(t * a.heads + head) * a.stride + d]) : 0.0f;
}

// The sums of one vector, turned back, to a row of dqkv; `scratch` [ways + 1, stride] of the warp.
template <class T>
__device__ __forceinline__ void give(const WeightedRows<T, kEach>& from, int i, float* scratch,
                                     const BackwardArgs& args, int64_t position, bool turns_back, float scale,
                                     T* to) {
  const AttentionOperands& a = args.a;
  const int lane = threadIdx.x % 32, chunks = a.stride / kChunk<T>,
            ways = WeightedRows<T, kEach>::ways(chunks);
  float* const sums = scratch + ways * a.stride;
  __syncwarp();
  from.put(i, scratch, chunks, a.stride);
  __syncwarp();
  for (int d = lane; d < a.D; d += 32) {
    float sum = 0.0f;
    for (int w = 0; w < ways; ++w) sum += scratch[w * a.stride + d];
    sums[d] = sum * scale;
  }
  __syncwarp();
  const int half = turns_back ? args.rotary.half : 0;
  for (int d = lane; d < a.D && to; d += 32) {
    float value = sums[d];
    if (d < 2 * half) {
      const float2 turn = cosine_and_sine(args.rotary, position, d % half);
      value = d < half ? value * turn.x + sums[d + half] * turn.y : value * turn.x - sums[d - half] * turn.y;
    }
    to[d] = from_f32<T>(value);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) queries_kernel(const __grid_constant__ BackwardArgs args) {
  const AttentionOperands& a = args.a;
  extern __shared__ __align__(16) char memory[];
  const Shared shared(memory, args);
  const Chunk chunk = chunk_of(a.batch, gridDim.x - 1 - blockIdx.x, kRows);
  if (chunk.sequence < 0) return;
  const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const int64_t slot = a.batch.slots[chunk.sequence];
  const int64_t first = a.begins[chunk.sequence] + chunk.index * kRows;
  const int rows = static_cast<int>(chunk.end - chunk.begin), chunks = a.stride / kChunk<T>;
  const int64_t tile_count = (first + rows - 1) / kTileTokens + 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto fetch = [&](int64_t tile) {
    const T* const page =
        tile < tile_count ? a.page<T>(slot, tile * kTileTokens / kPageTokens, kv_head) : nullptr;
    if (page) {
      const uint32_t keys = shared_address(shared.tile(tile));
      load_tile<kTileTokens>(page, static_cast<int>(tile * kTileTokens % kPageTokens),
                             static_cast<int>(min(first + rows - tile * kTileTokens, int64_t{kTileTokens})),
                             a.stride, args.row_bytes, keys, keys + static_cast<uint32_t>(shared.tile_bytes),
                             threadIdx.x, kThreads);
    }
    commit_copies();
  };
  fetch(0);
  fetch(1);
  for (int i = threadIdx.x; i < kRows * a.stride; i += kThreads) {
    const int row = i / a.stride, d = i % a.stride;
    shared.first[i] = a.scale * row_value<T>(a.q, a, chunk.begin + row, head, d, row < rows);
    shared.second[i] = row_value<T>(args.dy_rows, a, chunk.begin + row, head, d, row < rows);
  }
  float lse[kEach], along[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = warp * kEach + i;
    const int64_t at = (chunk.begin + min(row, rows - 1)) * a.heads + head;
    lse[i] = a.lse[at] * kLog2e;
    along[i] = args.along[at];
  }
  WeightedRows<T, kEach> dq;
  dq.clear();
  const float* const queries = shared.first + warp * kEach * a.stride;
  const float* const dys = shared.second + warp * kEach * a.stride;
  for (int64_t tile = 0; tile < tile_count; ++tile) {
    wait_for_copies<1>();
    __syncthreads();
    const int64_t key = tile * kTileTokens + lane;
    if (tile * kTileTokens < first + (warp + 1) * kEach) {
      float p[kEach], dp[kEach];
      dot_rows<T, kEach>(shared.tile(tile), args.row_bytes, chunks, queries, a.stride, p);
      dot_rows<T, kEach>(shared.tile(tile) + shared.tile_bytes, args.row_bytes, chunks, dys, a.stride, dp);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int row = warp * kEach + i;
        p[i] = row < rows && key <= first + row ? exp2_fast(p[i] - lse[i]) * (dp[i] - along[i]) : 0.0f;
      }
      dq.add(shared.tile(tile), args.row_bytes, chunks, p);
    }
    __syncthreads();
    fetch(tile + 2);
  }
  wait_for_copies<0>();
  __syncthreads();
  const int scratch_floats = (WeightedRows<T, kEach>::ways(chunks) + 1) * a.stride;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = warp * kEach + i;
    T* const to = static_cast<T*>(args.dqkv) + (chunk.begin + row) * args.dqkv_stride + a.query_column(head);
    give<T>(dq, i, reinterpret_cast<float*>(memory) + warp * scratch_floats, args, first + row, true,
            a.scale / kLog2e, row < rows ? to : nullptr);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) keys_kernel(const __grid_constant__ BackwardArgs args) {
  const AttentionOperands& a = args.a;
  extern __shared__ __align__(16) char memory[];
  const Shared shared(memory, args);
  const Chunk chunk = chunk_of(a.batch, blockIdx.x, kRows);
  if (chunk.sequence < 0) return;
  const int kv_head = blockIdx.y, group = a.heads / a.kv_heads;
  const int64_t slot = a.batch.slots[chunk.sequence];
  const int64_t last = a.batch.offsets[chunk.sequence + 1];
  const int64_t first = a.begins[chunk.sequence] + chunk.index * kRows;  // position of the first key
  const int rows = static_cast<int>(chunk.end - chunk.begin), chunks = a.stride / kChunk<T>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Queries from the chunk's first token on see any of it: tiles of 32 of them, one head after another.
  const int64_t tiles_of_head = (last - chunk.begin + kTileTokens - 1) / kTileTokens;
  const int64_t tile_count = tiles_of_head * group;
  const auto fetch = [&](int64_t tile) {
    if (tile < tile_count) {
      const int head = kv_head * group + static_cast<int>(tile / tiles_of_head);
      const int64_t t = chunk.begin + tile % tiles_of_head * kTileTokens;
      const uint32_t to = shared_address(shared.tile(tile));
      for (int i = threadIdx.x; i < kTileTokens * chunks; i += kThreads) {
        const int row = i / chunks, c = i % chunks;
        const bool there = t + row < last;
        const int64_t from = ((there ? t + row : t) * a.heads + head) * a.stride + c * kChunk<T>;
        const auto at = static_cast<uint32_t>(row * args.row_bytes + 16 * c);
        copy_async(to + at, static_cast<const T*>(a.q) + from, there);
        copy_async(to + static_cast<uint32_t>(shared.tile_bytes) + at,
                   static_cast<const T*>(args.dy_rows) + from, there);
      }
    }
    commit_copies();
  };
  fetch(0);
  fetch(1);
  for (int i = threadIdx.x; i < kRows * a.stride; i += kThreads) {
    const int row = i / a.stride, d = i % a.stride;
    const int64_t position = first + row;
    const T* const page = row < rows ? a.page<T>(slot, position / kPageTokens, kv_head) : nullptr;
    const int64_t at = position % kPageTokens * a.stride + d;
    shared.first[i] = page && d < a.D ? a.scale * to_f32(page[at]) : 0.0f;
    shared.second[i] = page && d < a.D ? to_f32(page[at + kPageTokens * a.stride]) : 0.0f;
  }
  WeightedRows<T, kEach> dk, dv;
  dk.clear();
  dv.clear();
  const float* const keys = shared.first + warp * kEach * a.stride;
  const float* const values = shared.second + warp * kEach * a.stride;
  for (int64_t tile = 0; tile < tile_count; ++tile) {
    const int head = kv_head * group + static_cast<int>(tile / tiles_of_head);
    const int64_t t = chunk.begin + tile % tiles_of_head * kTileTokens + lane;
    const bool there = t < last;
    const float lse = there ? a.lse[t * a.heads + head] * kLog2e : 0.0f;
    const float along = there ? args.along[t * a.heads + head] : 0.0f;
    wait_for_copies<1>();
    __syncthreads();
    float p[kEach], ds[kEach];
    dot_rows<T, kEach>(shared.tile(tile), args.row_bytes, chunks, keys, a.stride, p);
    dot_rows<T, kEach>(shared.tile(tile) + shared.tile_bytes, args.row_bytes, chunks, values, a.stride, ds);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool sees = there && t >= chunk.begin + warp * kEach + i && warp * kEach + i < rows;
      p[i] = sees ? exp2_fast(p[i] - lse) : 0.0f;
      ds[i] = p[i] * (ds[i] - along);
    }
    dv.add(shared.tile(tile) + shared.tile_bytes, args.row_bytes, chunks, p);
    dk.add(shared.tile(tile), args.row_bytes, chunks, ds);
    __syncthreads();
    fetch(tile + 2);
  }
  wait_for_copies<0>();
  __syncthreads();
  const int scratch_floats = (WeightedRows<T, kEach>::ways(chunks) + 1) * a.stride;
  float* const scratch = reinterpret_cast<float*>(memory) + warp * scratch_floats;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = warp * kEach + i;
    T* const to = static_cast<T*>(args.dqkv) + (chunk.begin + row) * args.dqkv_stride;
    const bool there = row < rows;
    give<T>(dk, i, scratch, args, first + row, true, a.scale / kLog2e,
            there ? to + a.key_column(kv_head) : nullptr);
    give<T>(dv, i, scratch, args, first + row, false, 1.0f, there ? to + a.value_column(kv_head) : nullptr);
  }
}

template <class T>
void launch_backward(const BackwardArgs& args) {
  const AttentionOperands& a = args.a;
  const auto stride = static_cast<size_t>(a.stride);
  const size_t tiles = 4 * size_t{kTileTokens} * static_cast<size_t>(args.row_bytes);
  const size_t scratch = kWarps * sizeof(float) * (size_t{WeightedRows<T, kEach>::kFloats} + 2 * stride);
  const size_t bytes = std::max(tiles, scratch) + 2 * sizeof(float) * kRows * stride;
  check_shared_bytes(bytes, a.D);
  static const bool allowed = [] {
    const auto most = static_cast<size_t>(properties().max_shared_bytes);
    return allow_shared_bytes(queries_kernel<T>, most) && allow_shared_bytes(keys_kernel<T>, most);
  }();
  (void)allowed;
  const dim3 block(kThreads);
  launch({.grid = dim3(static_cast<unsigned>(a.batch.total)), .block = block}, prepare_kernel<T>, args);
  const auto chunks = static_cast<unsigned>(chunk_numbers(a.batch, kRows));
  launch({.grid = dim3(chunks, static_cast<unsigned>(a.heads)), .block = block, .shared_bytes = bytes},
         queries_kernel<T>, args);
  launch({.grid = dim3(chunks, static_cast<unsigned>(a.kv_heads)), .block = block, .shared_bytes = bytes},
         keys_kernel<T>, args);
}

}  // namespace

void attention_gradients(const AttentionOperands& a, const Rotary& rotary, const Tensor& dy,
                         const Tensor& dqkv) {
  const Tensor rows = Tensor::empty({a.batch.total, a.heads, a.stride}, dy.dtype(), dy.device());
  const Tensor along = Tensor::empty({a.batch.total, a.heads}, DType::f32, dy.device());
  const BackwardArgs args{.a = a,
                          .rotary = rotary,
                          .dy = dy.raw(),
                          .dy_stride = dy.stride(0),
                          .dy_rows = rows.raw(),
                          .along = along.data<float>(),
                          .dqkv = dqkv.raw(),
                          .dqkv_stride = dqkv.stride(0),
                          .row_bytes = static_cast<int>(tile_row_bytes(a.stride, dy.dtype()))};
  dispatch(dy.dtype(), "attention_backward", [&](auto zero) { launch_backward<decltype(zero)>(args); });
}

}  // namespace ssm::cuda
