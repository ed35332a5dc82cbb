// What the kernels of ssd_scan's backward share where activations have 16 bits, heads kTile channels and
// groups 64 or 128 states: tiles of 16-bit elements in shared memory, and products of them on the tensor
// cores of warps.
//
// A tile is panels of 64 columns, 128 bytes a row, the 16-byte vector v of row r at place v ^ (r & 7). Tokens
// of a chunk that are not there are rows of zeros.
#pragma once

#include "ssm/ops/cuda/mma.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_backward_tiles.cuh"

namespace ssm::cuda::ssd_backward {

inline constexpr int kPanel = kTile * 128;  // bytes

// What dt and A give for a chunk and head, s_i being the sum of dt' A up to token i in units of log 2. Tokens
// that are not there have dt' = 0.
struct Factors {
  float log[kTile];         // s_i
  float dt[kTile];          // dt'_i
  float from_start[kTile];  // 2^s_i
  float to_end[kTile];      // dt'_i 2^(s_L - s_i)
};

__device__ __forceinline__ uint32_t place(uint32_t tile, int row, int vector) {
  return tile + static_cast<uint32_t>(row * 128 + ((vector ^ (row & 7)) * 16));
}
// Vector `odd` of the 16 columns from `column` on, which is a constant multiple of 16.
__device__ __forceinline__ uint32_t place(uint32_t tile, int row, int column, int odd) {
  return place(tile + column / 64 * kPanel, row, column % 64 / 8 + odd);
}

// Fragments (ops/cuda/mma.cuh) from tiles. The left operand's 16 rows from m on, 16 deep from k on:
__device__ __forceinline__ void load_left(uint32_t (&to)[4], uint32_t tile, int m, int k) {  // tile[m][k]
  const int lane = threadIdx.x % 32;
  ldmatrix(to, place(tile, m + lane % 16, k, lane / 16));
}
__device__ __forceinline__ void load_left_down(uint32_t (&to)[4], uint32_t tile, int m, int k) {  // [k][m]
  const int lane = threadIdx.x % 32;
  ldmatrix_transposed(to,
                      place(tile + m / 64 * kPanel, k + lane % 8 + lane / 16 * 8, m % 64 / 8 + lane / 8 % 2));
}
// The right operand's 16 columns from n on.
__device__ __forceinline__ void load_right(uint32_t (&to)[4], uint32_t tile, int k, int n) {  // tile[n][k]
  const int lane = threadIdx.x % 32;
  ldmatrix(to, place(tile, n + lane % 8 + lane / 16 * 8, k, lane / 8 % 2));
}
__device__ __forceinline__ void load_right_down(uint32_t (&to)[4], uint32_t tile, int k, int n) {  // [k][n]
  const int lane = threadIdx.x % 32;
  ldmatrix_transposed(to, place(tile, k + lane % 16, n, lane / 16));
}

// A warp's 16 rows of a product with 64 columns. Lane l has rows g, g + 8 and columns 8 t + 2 q, + 1 of each
// t, g = l / 4 and q = l % 4.
using Strip = float[8][4];

__device__ __forceinline__ void clear(Strip& c) {
#pragma unroll
  for (int i = 0; i < 32; ++i) c[i / 4][i % 4] = 0.0f;
}
// += a b for the 16 columns `pair`.
template <class T>
__device__ __forceinline__ void multiply(Strip& c, int pair, const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  mma<T>(c[2 * pair], a, b[0], b[1]);
  mma<T>(c[2 * pair + 1], a, b[2], b[3]);
}
// Columns `pair` of a strip as the left operand of a product over them.
template <class T>
__device__ __forceinline__ void as_left(uint32_t (&to)[4], const Strip& c, int pair) {
#pragma unroll
  for (int e = 0; e < 4; ++e)
    to[e] = pack<T>(c[2 * pair + e / 2][e % 2 * 2], c[2 * pair + e / 2][e % 2 * 2 + 1]);
}
// The strip's element i of a fragment's word e: f(word e, its elements in c).
template <class T, class F>
__device__ __forceinline__ void with_words(Strip& c, int pair, const uint32_t (&words)[4], F&& f) {
#pragma unroll
  for (int e = 0; e < 4; ++e)
    f(e % 2, e / 2, unpack<T>(words[e]), c[2 * pair + e / 2][e % 2 * 2], c[2 * pair + e / 2][e % 2 * 2 + 1]);
}

// Sums over the four lanes of a row.
__device__ __forceinline__ float sum_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// The warp's 16 rows, from `row` of the panel on, rounded; then f(row, vector, 16 bytes) of each vector.
template <class T, class F>
__device__ __forceinline__ void write_strip(const Strip& c, unsigned char* panel, int row, F&& f) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
  for (int t = 0; t < 8; ++t) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<uint32_t*>(panel + place(0, row + g + 8 * i, t) + 4 * q) =
          pack<T>(c[t][2 * i], c[t][2 * i + 1]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = row + i * 4 + lane / 8;
    f(r, lane % 8, *reinterpret_cast<const uint4*>(panel + place(0, r, lane % 8)));
  }
  __syncwarp();
}

// This thread's share of a panel's copy: vectors first, first + step, ... of `rows` rows that are there.
template <class T>
__device__ __forceinline__ void copy_panel(uint32_t to, const T* from, int64_t stride, int rows, int first,
                                           int step) {
  for (int i = first; i < kTile * 8; i += step) {
    const int r = i / 8, v = i % 8;
    copy_async(place(to, r, v), from + (r < rows ? r * stride : 0) + v * 8, r < rows);
  }
}

// The launches, for a whole backward but its parameters.
bool takes_narrow_backward(const BackwardArgs& a, DType dtype);
int64_t narrow_backward_blocks();  // that the card runs at once
void launch_narrow_backward(const BackwardArgs& a, DType dtype);

}  // namespace ssm::cuda::ssd_backward
