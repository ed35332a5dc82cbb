// Attention of many tokens on tensor cores ("FlashAttention-2", Dao 2023): a block has 128 queries of a head
// (64 of a wide one), a warp 16 of them; pages of keys and values go by, two under way in shared memory, and
// a running maximum and sum make of the blocks' exponentials one softmax.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/attention/attention_cuda.cuh"
#include "ssm/ops/cuda/mma.cuh"

namespace ssm::cuda {
namespace {

// Of a width of a head that there is a kernel for; a narrower one is filled up with zeros. All of them fit
// into the 99 KiB of shared memory that every card has.
template <int kD>
struct Layout {
  static constexpr int kWarps = kD > 128 ? 4 : 8, kRows = 16 * kWarps, kThreads = 32 * kWarps;
  static constexpr int kStride = kD + 8;  // of a row in shared memory: an odd number of 16 bytes
  static constexpr int kStages = kD < 128 ? 2 : 1;
  static constexpr int kPage = kPageTokens * kStride;
  static constexpr size_t kBytes = 2 * (size_t{kRows} * kStride + size_t{kStages} * 2 * kPage);
};

template <class T, int kD>
__global__ void __launch_bounds__(Layout<kD>::kThreads) attention_matrix_kernel(const AttentionOperands a) {
  using L = Layout<kD>;
  constexpr int kRows = L::kRows, kThreads = L::kThreads;
  extern __shared__ __align__(16) char memory[];
  T* const queries = reinterpret_cast<T*>(memory);
  T* const pages = queries + kRows * L::kStride;  // [stages, 2, kPageTokens, kStride]
  grid_dependency_wait();
  let_next_start();
  // Late queries, which see most, begin first.
  const Chunk chunk = chunk_of(a.batch, gridDim.x - 1 - blockIdx.x, kRows);
  if (chunk.sequence < 0) return;
  const int head = blockIdx.y, kv_head = head / (a.heads / a.kv_heads);
  const int64_t slot = a.batch.slots[chunk.sequence];
  const int64_t first = a.begins[chunk.sequence] + chunk.index * kRows;  // position of the first query
  const int rows = static_cast<int>(chunk.end - chunk.begin);
  const int64_t page_count = (first + rows - 1) / kPageTokens + 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, quad = lane % 4;

  constexpr int kChunks = kD / 8;
  const auto load_rows = [&](T* to, const T* from, int64_t stride, int count, int total) {
    for (int i = threadIdx.x; i < total * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks;
      copy_async(shared_address(to + row * L::kStride + 8 * c), from + row * stride + 8 * c,
                 row < count && 8 * c < a.stride);
    }
  };
  const auto load_page = [&](int64_t index, int stage) {
    if (index < page_count) {
      const T* const page = a.page<T>(slot, index, kv_head);
      const int count =
          page ? static_cast<int>(min(first + rows - index * kPageTokens, int64_t{kPageTokens})) : 0;
      T* const keys = pages + stage * 2 * L::kPage;
      const T* const from = page ? page : static_cast<const T*>(a.q);  // some address: nothing is read
      load_rows(keys, from, a.stride, count, kPageTokens);
      load_rows(keys + L::kPage, from + kPageTokens * a.stride, a.stride, count, kPageTokens);
    }
    commit_copies();
  };
  load_rows(queries, static_cast<const T*>(a.q) + (chunk.begin * a.heads + head) * a.stride,
            int64_t{a.heads} * a.stride, rows, kRows);
  load_page(0, 0);
  if (L::kStages > 1) load_page(1, 1);

  float out[kD / 8][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {};
  const int64_t row0 = first + 16 * warp + g;  // position of this lane's first row; the second is 8 further
  const uint32_t query_tile = shared_address(queries + (16 * warp + lane % 16) * L::kStride + lane / 16 * 8);
  const bool idle = 16 * warp >= rows;
  for (int64_t index = 0; index < page_count; ++index) {
    wait_for_copies<L::kStages - 1>();
    __syncthreads();
    const int64_t key0 = index * kPageTokens;
    if (!idle && key0 <= first + 16 * warp + 15) {
      T* const keys = pages + index % L::kStages * 2 * L::kPage;
      float s[8][4] = {};
      const uint32_t key_tile =
          shared_address(keys + (lane % 8 + lane / 16 * 8) * L::kStride + lane / 8 % 2 * 8);
#pragma unroll
      for (int k = 0; k < kD / 16; ++k) {
        uint32_t q[4];
        ldmatrix(q, query_tile + 32 * k);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          uint32_t b[4];
          ldmatrix(b, key_tile + 2 * (16 * n * L::kStride) + 32 * k);
          mma<T>(s[2 * n], q, b[0], b[1]);
          mma<T>(s[2 * n + 1], q, b[2], b[3]);
        }
      }
      const bool masked = key0 + kPageTokens - 1 > first + 16 * warp;
      float top[2] = {most[0], most[1]};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[n][i] *= a.scale;
          if (masked && key0 + 8 * n + 2 * quad + i % 2 > row0 + i / 2 * 8) s[n][i] = -INFINITY;
          top[i / 2] = fmaxf(top[i / 2], s[n][i]);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
        const float factor = exp2_fast(most[r] - top[r]);
        most[r] = top[r];
        total[r] *= factor;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          out[n][2 * r] *= factor;
          out[n][2 * r + 1] *= factor;
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s[n][i] = exp2_fast(s[n][i] - top[i / 2]);
          total[i / 2] += s[n][i];
        }
      }
      const uint32_t value_tile = shared_address(keys + L::kPage + lane % 16 * L::kStride + lane / 16 * 8);
#pragma unroll
      for (int k = 0; k < kPageTokens / 16; ++k) {
        const uint32_t p[4] = {pack<T>(s[2 * k][0], s[2 * k][1]), pack<T>(s[2 * k][2], s[2 * k][3]),
                               pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]),
                               pack<T>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < kD / 16; ++n) {
          uint32_t b[4];
          ldmatrix_transposed(b, value_tile + 2 * (16 * k * L::kStride) + 32 * n);
          mma<T>(out[2 * n], p, b[0], b[1]);
          mma<T>(out[2 * n + 1], p, b[2], b[3]);
        }
      }
    }
    __syncthreads();
    load_page(index + L::kStages, static_cast<int>(index % L::kStages));
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1);
    total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2);
    const int row = 16 * warp + g + 8 * r;
    if (row >= rows) continue;
    const int64_t t = chunk.begin + row;
    T* const y = static_cast<T*>(a.y) + t * a.y_stride + int64_t{head} * a.D;
    const float inverse = 1.0f / total[r];
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = 8 * n + 2 * quad + i;
        if (d < a.D) y[d] = from_f32<T>(out[n][2 * r + i] * inverse);
      }
    }
    if (a.lse && quad == 0) a.lse[t * a.heads + head] = (most[r] + log2f(total[r])) / kLog2e;
  }
}

template <class T, int kD>
void launch_matrix(const AttentionOperands& a) {
  static const bool allowed = allow_shared_bytes(attention_matrix_kernel<T, kD>, Layout<kD>::kBytes);
  (void)allowed;
  launch({.grid = dim3(static_cast<unsigned>(chunk_numbers(a.batch, Layout<kD>::kRows)),
                       static_cast<unsigned>(a.heads)),
          .block = dim3(Layout<kD>::kThreads),
          .shared_bytes = Layout<kD>::kBytes,
          .overlaps_previous = true},
         attention_matrix_kernel<T, kD>, a);
}

template <class T>
void launch_width(const AttentionOperands& a) {
  if (a.stride <= 32) {
    launch_matrix<T, 32>(a);
  } else if (a.stride <= 64) {
    launch_matrix<T, 64>(a);
  } else if (a.stride <= 80) {
    launch_matrix<T, 80>(a);
  } else if (a.stride <= 128) {
    launch_matrix<T, 128>(a);
  } else {
    launch_matrix<T, 256>(a);
  }
}

}  // namespace

void attention_matrix(const AttentionOperands& a, DType type) {
  if (type == DType::bf16) {
    launch_width<__nv_bfloat16>(a);
  } else {
    launch_width<__half>(a);
  }
}

}  // namespace ssm::cuda
