// What the kernels of ssd_scan's backward share: tiles of kTile x kTile f32 in shared memory and their
// products on the tensor cores in TF32. 16-bit operands fit TF32 exactly; what is computed is rounded to it
// (2^-11). With f32 activations each factor is split in two, and three products give f32's accuracy.
//
// A block is eight warps, each with a 32 x 16 part of a product. Tiles have kPitch columns, so that the rows
// of a fragment lie in different banks.
#pragma once

#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda::ssd_backward {

inline constexpr int kTile = 64;  // tokens of a chunk, states and head dims of a tile
inline constexpr int kPitch = kTile + 4;
inline constexpr int kThreads = 256;
inline constexpr int kParts = 4;  // of a tile's columns

using Tile = float[kTile][kPitch];

struct BackwardArgs {
  const void *x, *dt, *B, *C, *dy;
  const float *A, *D, *dt_bias, *initial;  // D, dt_bias and initial [B, H, N, P] may be null
  void *dx, *ddt, *dB, *dC;                // may be null
  int64_t x_stride, dt_stride, B_stride, C_stride, dy_stride, dx_stride, ddt_stride, dB_stride, dC_stride;
  int H, P, G, N, n_tiles, p_tiles;
  int block_heads, blocks;  // of a group: heads of a block, and blocks
  bool D_by_channel, dt_softplus;
  float dt_min, dt_max;
  Batch batch;
  int64_t numbers;  // of chunks
  // Workspace. Of T: the state before each chunk and dh after it [numbers, H, N, P]. f32:
  void *h, *dh;
  float* whole;             // [numbers, H]: what is left of a state after the chunk
  float* tokens;            // [3 + n_tiles, T, H]: Token, and by tile of N what the state gives to y
  float* through;           // [numbers, n_tiles, H]: <h, dh>
  float* scores;            // [numbers, G, blocks, kTile, kTile]: of dS^T
  float* BC;                // [2, blocks + 1, T, G*N]: of dC and dB
  float* D_sums;            // [numbers, H*P]
  float* sums;              // [2, numbers, H]: of dA and ddt_bias
  struct Factors* factors;  // [numbers, H] (ssd_scan_backward_narrow.cuh)
};

enum Token { kWithin, kDirect, kToState, kFromState };

__device__ __forceinline__ float to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// A warp's part of a kTile x kTile matrix.
struct Part {
  float v[2][2][4];

  __device__ __forceinline__ float& element(int i) { return v[i / 8][i / 4 % 2][i % 4]; }
  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int i = 0; i < 16; ++i) element(i) = 0.0f;
  }
  static __device__ __forceinline__ int first_row() { return threadIdx.x / 128 * 32; }
  static __device__ __forceinline__ int first_column() { return threadIdx.x / 32 % kParts * 16; }

  // f(row, column, element). A thread's elements lie in four rows, (slot = 0 .. 3) of four columns.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(first_row() + i * 16 + g + e / 2 * 8, first_column() + j * 8 + q * 2 + e % 2, v[i][j][e]);
      }
    }
  }
  // sums[part of the columns][row] of f(row, column, element) over a row's columns in this warp.
  template <class F>
  __device__ __forceinline__ void sum_rows(float (*sums)[kTile], F&& f) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) {
      const int row = first_row() + slot / 2 * 16 + g + slot % 2 * 8;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          sum += f(row, first_column() + j * 8 + q * 2 + e, v[slot / 2][j][slot % 2 * 2 + e]);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (q == 0) sums[threadIdx.x / 32 % kParts][row] = sum;
    }
  }

  // += a(row, k) b(k, column) over k.
  template <class T, class FA, class FB>
  __device__ __forceinline__ void add_product(FA&& a, FB&& b) {
    constexpr bool kSplit = sizeof(T) == 4;
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll 2
    for (int k = 0; k < kTile; k += 8) {
      float high_a[2][4], low_a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float x = a(first_row() + i * 16 + g + e % 2 * 8, k + q + e / 2 * 4);
          high_a[i][e] = to_tf32(x);
          if (kSplit) low_a[i][e] = to_tf32(x - high_a[i][e]);
        }
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float high_b[2], low_b[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = b(k + q + e * 4, first_column() + j * 8 + g);
          high_b[e] = to_tf32(x);
          if (kSplit) low_b[e] = to_tf32(x - high_b[e]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (kSplit) {
            mma_tf32(v[i][j], low_a[i], high_b);
            mma_tf32(v[i][j], high_a[i], low_b);
          }
          mma_tf32(v[i][j], high_a[i], high_b);
        }
      }
    }
  }
};

// [rows, columns] of a matrix into a tile, zeros around them; row i times factor[i] where that is given.
template <class T>
__device__ __forceinline__ void load_tile(Tile& to, const void* matrix, int64_t offset, int64_t stride,
                                          int rows, int columns, const float* factor = nullptr) {
  const T* const from = static_cast<const T*>(matrix) + offset;
  const bool vectors =
      columns % 4 == 0 && stride % 4 == 0 && reinterpret_cast<uintptr_t>(from) % (4 * sizeof(T)) == 0;
  constexpr int kPacks = kTile * kTile / 4 / kThreads;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float values[kPacks / 2][4];
#pragma unroll
    for (int i = 0; i < kPacks / 2; ++i) {
      const int at = (half * kPacks / 2 + i) * kThreads + threadIdx.x, r = at / (kTile / 4),
                c = at % (kTile / 4) * 4;
      if (vectors) {
        Pack<T, 4> pack{};
        if (r < rows && c < columns) pack = load_pack<4>(from + r * stride + c);
        widen<4>(values[i], pack);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          values[i][e] = r < rows && c + e < columns ? to_f32(from[r * stride + c + e]) : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kPacks / 2; ++i) {
      const int at = (half * kPacks / 2 + i) * kThreads + threadIdx.x, r = at / (kTile / 4),
                c = at % (kTile / 4) * 4;
      if (factor) {
#pragma unroll
        for (int e = 0; e < 4; ++e) values[i][e] *= factor[r];
      }
      store<4>(&to[r][c], values[i]);
    }
  }
}

// The decays of a head's chunk, s_i being the sum of dt' A up to token i in units of log 2, as a pair of
// floats.
struct Decays {
  float dt[kTile], high[kTile], low[kTile];
  float from_start[kTile];  // exp(s_i)
  float end[kTile];         // exp(s_L - s_j)
  float to_end[kTile];      // times dt_j

  // By the whole block; nothing of it may be in use, and it is there after the next barrier but one.
  template <class T>
  __device__ __forceinline__ void compute(const BackwardArgs& a, const Chunk& chunk, int head) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const int i = static_cast<int>(threadIdx.x) * 2;
      const float bias = a.dt_bias ? a.dt_bias[head] : 0.0f, A = a.A[head];
      double sum[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float step = 0.0f;
        if (chunk.begin + i + e < chunk.end) {
          step = to_f32(static_cast<const T*>(a.dt)[(chunk.begin + i + e) * a.dt_stride + head]) + bias;
          if (a.dt_softplus) step = softplus(step);
          step = fminf(fmaxf(step, a.dt_min), a.dt_max);
        }
        dt[i + e] = step;
        sum[e] = static_cast<double>(step) * A * 1.4426950408889634;
      }
      sum[1] += sum[0];
      double before = sum[1];
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, before, offset);
        if (static_cast<int>(threadIdx.x) >= offset) before += other;
      }
      before -= sum[1];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const double s = before + sum[e];
        high[i + e] = static_cast<float>(s);
        low[i + e] = static_cast<float>(s - high[i + e]);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTile; i += kThreads) {
      from_start[i] = exp2_fast(high[i]);
      end[i] = exp2_fast((high[kTile - 1] - high[i]) + (low[kTile - 1] - low[i]));
      to_end[i] = end[i] * dt[i];
    }
    __syncthreads();
  }
  // exp(s_i - s_j)
  __device__ __forceinline__ float between(int i, int j) const {
    return exp2_fast((high[i] - high[j]) + (low[i] - low[j]));
  }
};

// What a lane of a warp has of its two tokens of a chunk; zeros where there are none.
struct StepSums {
  float within[2], direct[2], to_state[2], from_state[2];
  float through;  // of the whole chunk
};

// ddt of a chunk and head by a warp, and the chunk's parts of dA and ddt_bias.
template <class T>
__device__ __forceinline__ void write_steps(const BackwardArgs& a, const Chunk& chunk, int64_t number,
                                            int head, const StepSums& of) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float dt[2] = {}, slope[2] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t t = chunk.begin + lane * 2 + e;
    if (t >= chunk.end) continue;
    const float raw =
        to_f32(static_cast<const T*>(a.dt)[t * a.dt_stride + head]) + (a.dt_bias ? a.dt_bias[head] : 0.0f);
    const float step = a.dt_softplus ? softplus(raw) : raw;
    slope[e] = step < a.dt_min || step > a.dt_max ? 0.0f : a.dt_softplus ? sigmoid(raw) : 1.0f;
    dt[e] = fminf(fmaxf(step, a.dt_min), a.dt_max);
  }
  // Sums of what went into the state over the tokens before, of what came from it from the token on.
  const float into[2] = {dt[0] * of.to_state[0], dt[1] * of.to_state[1]};
  float before = into[0] + into[1], after = of.from_state[0] + of.from_state[1];
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const float left = __shfl_up_sync(kAll, before, offset), right = __shfl_down_sync(kAll, after, offset);
    if (lane >= offset) before += left;
    if (lane + offset < 32) after += right;
  }
  const float left = __shfl_up_sync(kAll, before, 1), right = __shfl_down_sync(kAll, after, 1);
  const float before0 = lane > 0 ? left : 0.0f, after2 = lane < 31 ? right : 0.0f;
  const float r[2] = {
      of.within[0] + (before0 + (of.from_state[0] + (of.from_state[1] + after2)) + of.through),
      of.within[1] + ((before0 + into[0]) + (of.from_state[1] + after2) + of.through)};
  float dA = 0.0f, dbias = 0.0f;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t t = chunk.begin + lane * 2 + e;
    const float ddt = fmaf(a.A[head], r[e], of.direct[e] + of.to_state[e]) * slope[e];
    dA = fmaf(dt[e], r[e], dA);
    dbias += ddt;
    if (a.ddt && t < chunk.end) static_cast<T*>(a.ddt)[t * a.ddt_stride + head] = from_f32<T>(ddt);
  }
  dA = warp_sum(dA), dbias = warp_sum(dbias);
  if (lane == 0) a.sums[number * a.H + head] = dA, a.sums[(a.numbers + number) * a.H + head] = dbias;
}

// A chunk and how much of a tile of N or P there is.
__device__ __forceinline__ int rest(int size, int tile) { return min(kTile, size - tile * kTile); }
__device__ __forceinline__ int length_of(const Chunk& c) { return static_cast<int>(c.end - c.begin); }

}  // namespace ssm::cuda::ssd_backward
