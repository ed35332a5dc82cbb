// What the kernels of ssd_scan's backward share where sizes are any and factors TF32
// (ssd_scan_backward_cuda.cu has the formulas), and the two that carry most of its work.
#pragma once

#include "ssm/ops/ssd_scan/ssd_scan_backward_tiles.cuh"

namespace ssm::cuda::ssd_backward {

__device__ __forceinline__ int64_t state_at(const BackwardArgs& a, int64_t number, int head, int n, int p) {
  return ((number * a.H + head) * a.N + n * kTile) * a.P + p * kTile;
}
__device__ __forceinline__ int group_of(const BackwardArgs& a, int head) { return head / (a.H / a.G); }
// [T, G*N]: dC or dB of a block of heads, and last of `groups`.
__device__ __forceinline__ float* sums_of(const BackwardArgs& a, int which, int block) {
  return a.BC + (which * (a.blocks + 1) + block) * a.batch.total * a.G * a.N;
}
__device__ __forceinline__ float& token(const BackwardArgs& a, int which, int64_t t, int head) {
  return a.tokens[(which * a.batch.total + t) * a.H + head];
}

struct InputTiles {
  Tile x, dy, M, B, dh;
  Decays decays;
  float parts[3][kParts][kTile];
  float over_tokens[kParts][kTile];
};

// x and dy of a tile of P, unless they are there already.
template <class T>
__device__ __forceinline__ void load_inputs(const BackwardArgs& a, const Chunk& chunk, int head, int p,
                                            InputTiles& t) {
  const int64_t column = int64_t{head} * a.P + p * kTile;
  load_tile<T>(t.x, a.x, chunk.begin * a.x_stride + column, a.x_stride, length_of(chunk), rest(a.P, p));
  load_tile<T>(t.dy, a.dy, chunk.begin * a.dy_stride + column, a.dy_stride, length_of(chunk), rest(a.P, p));
}

__device__ __forceinline__ float sum_parts(const float (&parts)[kParts][kTile], int i) {
  return (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
}

// M^T into shared memory, dS^T, and the parts of ddt from within the chunk. `dM` is transposed like all of
// them: rows are j, columns i.
template <class T>
__device__ __forceinline__ void attention_backward(const BackwardArgs& a, const Chunk& chunk, int head,
                                                   Part& dM, Part& S, Part& dS, InputTiles& t) {
  const Decays& d = t.decays;
  Part direct;
#pragma unroll
  for (int e = 0; e < 16; ++e) direct.element(e) = S.element(e);
  const int L = length_of(chunk);
  // `direct` holds S until its element is due.
  int e = 0;
  dM.for_each([&](int j, int i, float& of_M) {
    float& s = direct.element(e);
    float& to_S = dS.element(e);
    ++e;
    const float E = j <= i && i < L ? (j == i ? 1.0f : d.between(i, j)) : 0.0f;
    const float m = s * E;
    t.M[j][i] = m * d.dt[j];
    to_S = fmaf(of_M * E, d.dt[j], to_S);
    s = of_M * m;
    t.B[j][i] = j < i ? s * d.dt[j] : 0.0f;
  });
  direct.sum_rows(t.parts[0], [](int, int, float x) { return x; });
  __syncthreads();
  // What the tokens before k give to those from k on.
  Part before;
  before.zero();
  before.add_product<T>([](int k, int j) { return j < k ? 1.0f : 0.0f; },
                        [&](int j, int i) { return t.B[j][i]; });
  before.sum_rows(t.parts[1], [](int k, int i, float x) { return i >= k ? x : 0.0f; });
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= L) return;
  token(a, kDirect, chunk.begin + i, head) = sum_parts(t.parts[0], i);
  token(a, kWithin, chunk.begin + i, head) = sum_parts(t.parts[1], i);
}

// Sums over the rows of f(row, column) for every column; a barrier.
template <class F>
__device__ __forceinline__ void sum_columns(float (&scratch)[kParts][kTile], float* to, int columns, F&& f) {
  const int c = threadIdx.x % kTile, part = threadIdx.x / kTile;
  float sum = 0.0f;
#pragma unroll
  for (int r = part * (kTile / kParts); r < (part + 1) * (kTile / kParts); ++r) sum += f(r, c);
  scratch[part][c] = sum;
  __syncthreads();
  if (part == 0 && c < columns) to[c] = sum_parts(scratch, c);
}

// A block is a chunk and a block of heads of one group.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    ssd_scan_backward_inputs_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ float4 memory[];
  InputTiles& t = *reinterpret_cast<InputTiles*>(memory);
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int block = static_cast<int>(blockIdx.y) % a.blocks, g = static_cast<int>(blockIdx.y) / a.blocks;
  const int first = g * (a.H / a.G) + block * a.block_heads,
            last = min(first + a.block_heads, (g + 1) * (a.H / a.G));
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (chunk.sequence < 0) {
    for (int i = first * a.P + threadIdx.x; i < last * a.P; i += kThreads)
      a.D_sums[number * a.H * a.P + i] = 0.0f;
    return;
  }
  const int L = length_of(chunk);
  const auto load_B = [&](Tile& to, int n, const void* from, int64_t stride) {
    load_tile<T>(to, from, chunk.begin * stride + int64_t{g} * a.N + n * kTile, stride, L, rest(a.N, n));
  };
  Part S, dS;
  S.zero(), dS.zero();
  for (int n = 0; n < a.n_tiles; ++n) {
    __syncthreads();
    load_B(t.B, n, a.B, a.B_stride);
    load_B(t.dh, n, a.C, a.C_stride);
    __syncthreads();
    S.add_product<T>([&](int j, int k) { return t.B[j][k]; }, [&](int k, int i) { return t.dh[i][k]; });
  }
  for (int head = first; head < last; ++head) {
    t.decays.compute<T>(a, chunk, head);
    Part dM;
    dM.zero();
    for (int p = 0; p < a.p_tiles; ++p) {
      __syncthreads();
      load_inputs<T>(a, chunk, head, p, t);
      __syncthreads();
      dM.add_product<T>([&](int j, int k) { return t.x[j][k]; }, [&](int k, int i) { return t.dy[i][k]; });
    }
    attention_backward<T>(a, chunk, head, dM, S, dS, t);
    float to_state = 0.0f;
    for (int p = 0; p < a.p_tiles; ++p) {
      const int P = rest(a.P, p);
      if (a.p_tiles > 1) {
        __syncthreads();
        load_inputs<T>(a, chunk, head, p, t);
      }
      Part dx;
      dx.zero();
      for (int n = 0; n < a.n_tiles; ++n) {
        __syncthreads();
        load_B(t.B, n, a.B, a.B_stride);
        load_tile<T>(t.dh, a.dh, state_at(a, number, head, n, p), a.P, rest(a.N, n), P);
        __syncthreads();
        dx.add_product<T>([&](int j, int k) { return t.B[j][k]; }, [&](int k, int c) { return t.dh[k][c]; });
      }
      dx.sum_rows(t.parts[2], [&](int j, int c, float x) { return x * t.x[j][c]; });
      dx.for_each([&](int j, int, float& x) { x *= t.decays.to_end[j]; });
      dx.add_product<T>([&](int j, int k) { return t.M[j][k]; }, [&](int k, int c) { return t.dy[k][c]; });
      const int64_t column = int64_t{head} * a.P + p * kTile;
      dx.for_each([&](int j, int c, float x) {
        if (j >= L || c >= P || a.dx == nullptr) return;
        const float D = a.D ? a.D[a.D_by_channel ? column + c : head] : 0.0f;
        static_cast<T*>(a.dx)[(chunk.begin + j) * a.dx_stride + column + c] =
            from_f32<T>(fmaf(D, t.dy[j][c], x));
      });
      sum_columns(t.over_tokens, a.D_sums + number * a.H * a.P + column, P,
                  [&](int r, int c) { return t.x[r][c] * t.dy[r][c]; });
      if (threadIdx.x < kTile) to_state += sum_parts(t.parts[2], threadIdx.x);
    }
    if (static_cast<int>(threadIdx.x) < L)
      token(a, kToState, chunk.begin + threadIdx.x, head) = to_state * t.decays.end[threadIdx.x];
  }
  float* const scores = a.scores + (number * gridDim.y + blockIdx.y) * kTile * kTile;
  dS.for_each([&](int j, int i, float x) { scores[j * kTile + i] = x; });
}

struct StateTiles {
  Tile x, dy, h, dh, C;
  Decays decays;
  float parts[kParts][kTile];
  float scratch[32];
};

// A block is a chunk, a block of heads of one group and a tile of N.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    ssd_scan_backward_states_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ float4 memory[];
  StateTiles& t = *reinterpret_cast<StateTiles*>(memory);
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int block = static_cast<int>(blockIdx.y) % a.blocks, g = static_cast<int>(blockIdx.y) / a.blocks;
  const int n = static_cast<int>(blockIdx.z), N = rest(a.N, n);
  const int first = g * (a.H / a.G) + block * a.block_heads,
            last = min(first + a.block_heads, (g + 1) * (a.H / a.G));
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (chunk.sequence < 0) return;
  const int L = length_of(chunk);
  load_tile<T>(t.C, a.C, chunk.begin * a.C_stride + int64_t{g} * a.N + n * kTile, a.C_stride, L, N);
  Part dC, dB;
  dC.zero(), dB.zero();
  for (int head = first; head < last; ++head) {
    t.decays.compute<T>(a, chunk, head);
    Part of_C, of_B;
    of_C.zero(), of_B.zero();
    float through = 0.0f;
    for (int p = 0; p < a.p_tiles; ++p) {
      const int64_t column = int64_t{head} * a.P + p * kTile, state = state_at(a, number, head, n, p);
      const int P = rest(a.P, p);
      __syncthreads();
      load_tile<T>(t.x, a.x, chunk.begin * a.x_stride + column, a.x_stride, L, P);
      load_tile<T>(t.dy, a.dy, chunk.begin * a.dy_stride + column, a.dy_stride, L, P);
      load_tile<T>(t.h, a.h, state, a.P, N, P);
      load_tile<T>(t.dh, a.dh, state, a.P, N, P);
      __syncthreads();
      of_C.add_product<T>([&](int i, int k) { return t.dy[i][k]; }, [&](int k, int c) { return t.h[c][k]; });
      of_B.add_product<T>([&](int j, int k) { return t.x[j][k]; }, [&](int k, int c) { return t.dh[c][k]; });
      for (int i = threadIdx.x; i < kTile * kTile; i += kThreads)
        through = fmaf(t.h[i / kTile][i % kTile], t.dh[i / kTile][i % kTile], through);
    }
    of_C.for_each([&](int i, int, float& x) { x *= t.decays.from_start[i]; });
    of_B.for_each([&](int j, int, float& x) { x *= t.decays.to_end[j]; });
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      dC.element(e) += of_C.element(e);
      dB.element(e) += of_B.element(e);
    }
    of_C.sum_rows(t.parts, [&](int i, int c, float x) { return x * t.C[i][c]; });
    through = warp_sum(through);
    if (threadIdx.x % 32 == 0) t.scratch[threadIdx.x / 32] = through;
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    if (i < L) token(a, kFromState + n, chunk.begin + i, head) = sum_parts(t.parts, i);
    if (i == 0) {
      float sum = 0.0f;
      for (int w = 0; w < kThreads / 32; ++w) sum += t.scratch[w];
      a.through[(number * a.n_tiles + n) * a.H + head] = sum;
    }
  }
  const auto write = [&](Part& part, int which) {
    float* const to = sums_of(a, which, block) + (chunk.begin * a.G + g) * a.N + n * kTile;
    part.for_each([&](int i, int c, float x) {
      if (i < L && c < N) to[int64_t{i} * a.G * a.N + c] = x;
    });
  };
  write(dC, 0);
  write(dB, 1);
}

}  // namespace ssm::cuda::ssd_backward
