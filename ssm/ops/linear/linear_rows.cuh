// The product of few rows with a matrix, as the decode step's kernels share it: what bounds it is reading the
// weights once.
//
// A warp multiplies a strip of 8 * Eights rows of W by a part of K. A lane (g = lane / 4, t = lane % 4) reads
// 16 bytes of row g of each eight at a time, so that a step of the warp covers kStep values of K; which of
// them meet in one matrix instruction does not matter as long as x is read the same way. Weights are never
// written by kernels: a warp reads its first Depth steps of them into registers before
// grid_dependency_wait(), and asks L2 for the rest.
#pragma once

#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/core/tensor.h"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/mma.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {

template <class X>
inline constexpr int kPack = 16 / sizeof(X);  // values of a lane's load
template <class X>
inline constexpr int kStep = 4 * kPack<X>;  // values of K in a step of a warp

// Read once: past L1.
__device__ __forceinline__ uint4 load_weights(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// Sums of a strip with up to Rows rows of x: in 16 bits 8, 16 or 32, in f32 any small number. In 16 bits tile
// m of the sums with an eight holds, as the matrix instruction leaves them, rows 16 m + g and 16 m + g + 8 of
// x against rows 2t and 2t + 1 of the eight, in several chains, since an instruction waits long for the one
// before; in f32 value r is this lane's part of row r of x against row g of the eight. Of x, Ahead steps are
// read at a time.
template <class X, int Rows, int Eights, int Depth, int Ahead = Depth>
struct Strip {
  static constexpr bool kMatrix = sizeof(X) == 2;
  static constexpr int kTiles = kMatrix ? (Rows + 15) / 16 : 1;
  static constexpr int kChains = kMatrix && kTiles * Eights < 4 ? 4 / (kTiles * Eights) : 1;
  static constexpr int kLoads = kMatrix ? Rows / 8 : Rows;             // of x, a step
  static constexpr int kGroup = kLoads >= Ahead ? 1 : Ahead / kLoads;  // steps of x read at a time
  static constexpr int kSpan = Depth * kStep<X>;                       // values of K that are held
  static constexpr int kWidth = 8 * Eights;                            // rows of W
  static constexpr int kSums = Rows * kWidth;                          // what give() writes
  uint4 weights[Depth][Eights];
  float sums[kChains][Eights][kTiles][kMatrix ? 4 : Rows] = {};

  // Row g of the first eight begins at `row`; `rows` of the strip exist, `stride` apart, with K values each.
  __device__ __forceinline__ void read_weights(const X* row, int64_t stride, int64_t rows, int K) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < Eights; ++e) {
      const X* from = row + 8 * e * stride + t * kPack<X>;
      const int left = 8 * e + g < rows ? K - t * kPack<X> : 0;
#pragma unroll
      for (int i = 0; i < Depth; ++i) {
        weights[i][e] = i * kStep<X> < left ? load_weights(from + i * kStep<X>) : uint4{};
      }
    }
  }

  // Asks L2 for what is not held of the same rows.
  __device__ __forceinline__ void prefetch_weights(const X* row, int64_t stride, int64_t rows, int K) const {
    constexpr int kLine = 128 / sizeof(X);
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < Eights; ++e) {
      if (8 * e + g >= rows) continue;
      for (int k = kSpan + t * kLine; k < K; k += 4 * kLine) prefetch(row + 8 * e * stride + k);
    }
  }

  // With the values of x that belong to them; rows are `x_stride` apart, there are T.
  __device__ __forceinline__ void multiply(const X* x, int64_t x_stride, int T, int K) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
    const X* from[kLoads];
    int left[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int row = kMatrix ? 8 * j + g : j;
      from[j] = x + row * x_stride + t * kPack<X>;
      left[j] = row < T ? K - t * kPack<X> : 0;
    }
#pragma unroll
    for (int begin = 0; begin < Depth; begin += kGroup) {
      if (begin * kStep<X> >= K) break;
      uint4 loaded[kGroup][kLoads];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          loaded[i][j] = begin + i < Depth && (begin + i) * kStep<X> < left[j]
                             ? *reinterpret_cast<const uint4*>(from[j] + (begin + i) * kStep<X>)
                             : uint4{};
        }
      }
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (begin + i < Depth) multiply_step(begin + i, loaded[i]);
      }
    }
  }

  __device__ __forceinline__ void multiply_step(int step, const uint4 (&x)[kLoads]) {
#pragma unroll
    for (int e = 0; e < Eights; ++e) {
      const uint4& w = weights[step][e];
      if constexpr (kMatrix) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const uint4 low = x[2 * m], high = 2 * m + 1 < kLoads ? x[(2 * m + 1) % kLoads] : uint4{};
          mma<X>(sums[2 * step % kChains][e][m], {low.x, high.x, low.y, high.y}, w.x, w.y);
          mma<X>(sums[(2 * step + 1) % kChains][e][m], {low.z, high.z, low.w, high.w}, w.z, w.w);
        }
      } else {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          float& sum = sums[0][e][0][r];
          sum += __uint_as_float(w.x) * __uint_as_float(x[r].x);
          sum += __uint_as_float(w.y) * __uint_as_float(x[r].y);
          sum += __uint_as_float(w.z) * __uint_as_float(x[r].z);
          sum += __uint_as_float(w.w) * __uint_as_float(x[r].w);
        }
      }
    }
  }

  // Reads W and x of a part of K longer than what is held; the held steps have been read.
  __device__ __forceinline__ void multiply_all(const X* row, int64_t stride, int64_t rows, const X* x,
                                               int64_t x_stride, int T, int K) {
    multiply(x, x_stride, T, K);
    for (int k = kSpan; k < K; k += kSpan) {
      read_weights(row + k, stride, rows, K - k);
      multiply(x + k, x_stride, T, K - k);
    }
  }

  // Hands the sums to shared memory [Rows][kWidth].
  __device__ __forceinline__ void give(float* to) {
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < Eights; ++e) {
      if constexpr (kMatrix) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          float(&sum)[4] = sums[0][e][m];
#pragma unroll
          for (int c = 1; c < kChains; ++c) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i] += sums[c][e][m][i];
          }
          float* at = to + (16 * m + g) * kWidth + 8 * e + 2 * t;
          *reinterpret_cast<float2*>(at) = {sum[0], sum[1]};
          if (Rows > 8) *reinterpret_cast<float2*>(at + 8 * kWidth) = {sum[2], sum[3]};
        }
      } else {
#pragma unroll
        for (int r = 0; r < Rows; ++r) {
          float sum = sums[0][e][0][r];
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          sum += __shfl_xor_sync(0xffffffffu, sum, 2);
          if (t == 0) to[r * kWidth + 8 * e + g] = sum;
        }
      }
    }
  }
};

struct RowsArgs {
  const void* w;
  int64_t N, w_stride;
  int T, K, part;  // values of K of a warp
};

// Where the rows of x come from: memory,
template <class X>
struct InMemory {
  static constexpr bool kStaged = false;
  const X* x;
  int64_t stride;
};

// or shared memory, where every block makes them for itself: the root mean square norm of other rows,
// `groups` equal parts of a row each by itself. Input::read gives values [i, i + kQuad) of row t of what is
// normed.
constexpr int kQuad = 4;
constexpr int kKept = 5;  // quads of a row that a thread holds in registers; beyond them it reads twice
template <class X, class Input>
struct Normed {
  static constexpr bool kStaged = true;
  Input input;
  const float* weight;
  float eps;
  int groups;

  // Fills to[T][K]; `scratch` holds a float a warp. Ends with a barrier.
  __device__ __forceinline__ void stage(X* to, float* scratch, int T, int K) const {
    const int thread = static_cast<int>(threadIdx.x + 32 * (threadIdx.y + blockDim.y * threadIdx.z));
    const int threads = static_cast<int>(32 * blockDim.y * blockDim.z);
    const int width = K / groups, step = threads * kQuad, start = thread * kQuad;
    for (int row = 0; row < T * groups; ++row) {
      const int t = row / groups, first = row % groups * width;
      float kept[kKept][kQuad];
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        if (start + j * step < width) input.read(kept[j], t, first + start + j * step);
      }
      float square = 0;
      const auto add = [&](const float(&values)[kQuad]) {
#pragma unroll
        for (int i = 0; i < kQuad; ++i) square += values[i] * values[i];
      };
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        if (start + j * step < width) add(kept[j]);
      }
      for (int i = start + kKept * step; i < width; i += step) {
        float values[kQuad];
        input.read(values, t, first + i);
        add(values);
      }
      square = warp_sum(square);
      if (thread % 32 == 0) scratch[thread / 32] = square;
      __syncthreads();
      square = warp_sum(thread % 32 < threads / 32 ? scratch[thread % 32] : 0.0f);
      const float scale = rsqrtf(square / static_cast<float>(width) + eps);
      const auto write = [&](int i, float(&values)[kQuad]) {
        float w[kQuad];
        load<kQuad>(w, weight + first + i);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) values[j] *= scale * w[j];
        store<kQuad>(to + int64_t{t} * K + first + i, values);
      };
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        if (start + j * step < width) write(start + j * step, kept[j]);
      }
      for (int i = start + kKept * step; i < width; i += step) {
        float values[kQuad];
        input.read(values, t, first + i);
        write(i, values);
      }
      __syncthreads();
    }
  }
};

// The residual's rows.
struct Residual {
  const float* values;
  int64_t stride;
  __device__ __forceinline__ void read(float (&to)[kQuad], int t, int i) const {
    load<kQuad>(to, values + t * stride + i);
  }
};

// y * silu(z)
template <class X>
struct Gated {
  const X *y, *z;
  int64_t y_stride, z_stride;
  __device__ __forceinline__ void read(float (&to)[kQuad], int t, int i) const {
    const auto y_pack = load_pack<kQuad>(y + t * y_stride + i),
               z_pack = load_pack<kQuad>(z + t * z_stride + i);
    float gate[kQuad];
    widen<kQuad>(to, y_pack);
    widen<kQuad>(gate, z_pack);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) to[j] *= silu(gate[j]);
  }
};

// Blocks of (32, parts of K, strips) threads: the warps of a strip share K out, and their sums are added in
// one order. What becomes of a sum is the epilogue's, whose members are the kernel's arguments:
//   Held                         what a thread holds for one value (t, n) of the result
//   read_parameters(held, t, n)  before the previous kernel's end: what no kernel writes
//   read_inputs(held, t, n)      after it
//   write(held, t, n, sum)
template <class X, int Rows, int Eights, int Depth, int MaxParts, int MinBlocks, class Source, class Epilogue>
__global__ void __launch_bounds__(32 * MaxParts, MinBlocks)
    linear_rows_kernel(const RowsArgs a, const Source source, const Epilogue epilogue) {
  // From shared memory little of x is read ahead; from L2 as much as the registers of MinBlocks blocks allow.
  constexpr int kAhead = Source::kStaged ? 2 : Depth > 6 && MinBlocks > 2 ? Depth / 2 : Depth;
  using Sums = Strip<X, Rows, Eights, Depth, kAhead>;
  extern __shared__ float4 shared[];
  const int parts = blockDim.y, part = threadIdx.y, strip = threadIdx.z;
  float* sums_of_block = reinterpret_cast<float*>(shared);
  float* given = sums_of_block + strip * parts * Sums::kSums;
  const int64_t n0 = (int64_t{blockIdx.x} * blockDim.z + strip) * Sums::kWidth, rows = a.N - n0;
  const int begin = part * a.part, K = min(a.K - begin, a.part);
  const X* w = static_cast<const X*>(a.w) + (n0 + threadIdx.x / 4) * a.w_stride + begin;
  Sums sums;
  sums.read_weights(w, a.w_stride, rows, K);
  sums.prefetch_weights(w, a.w_stride, rows, K);
  let_next_start();
  // The strip's results that are this thread's: i0, i0 + 32 parts ..., of one column.
  const int i0 = part * 32 + threadIdx.x, column = i0 % Sums::kWidth;
  const bool owns = column < rows && i0 < a.T * Sums::kWidth;
  const int64_t n = n0 + column;
  typename Epilogue::Held held;
  if (owns) epilogue.read_parameters(held, i0 / Sums::kWidth, n);
  grid_dependency_wait();
  if (owns) epilogue.read_inputs(held, i0 / Sums::kWidth, n);
  if constexpr (Source::kStaged) {
    X* staged = reinterpret_cast<X*>(sums_of_block + blockDim.z * parts * Sums::kSums);
    source.stage(staged, sums_of_block, a.T, a.K);
    sums.multiply_all(w, a.w_stride, rows, staged + begin, a.K, a.T, K);
  } else {
    sums.multiply_all(w, a.w_stride, rows, source.x + begin, source.stride, a.T, K);
  }
  sums.give(given + part * Sums::kSums);
  __syncthreads();
  if (!owns) return;
  for (int i = i0; i < a.T * Sums::kWidth; i += parts * 32) {
    const int t = i / Sums::kWidth;
    if (i != i0) {
      epilogue.read_parameters(held, t, n);
      epilogue.read_inputs(held, t, n);
    }
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum += given[p * Sums::kSums + i];
    epilogue.write(held, t, n, sum);
  }
}

// The epilogue of a product: bias (or null) is added, y is of x's type or f32.
template <class X>
struct Plain {
  const float* bias;  // or null
  void* y;
  bool y_is_f32;
  int64_t y_stride;
  struct Held {
    float bias;
  };
  __device__ __forceinline__ void read_parameters(Held& held, int, int64_t n) const {
    held.bias = bias ? bias[n] : 0.0f;
  }
  __device__ __forceinline__ void read_inputs(Held&, int, int64_t) const {}
  __device__ __forceinline__ void write(const Held& held, int t, int64_t n, float sum) const {
    put(t, n, sum + held.bias);
  }
  __device__ __forceinline__ void put(int t, int64_t n, float value) const {
    if (y_is_f32) {
      static_cast<float*>(y)[t * y_stride + n] = value;
    } else {
      static_cast<X*>(y)[t * y_stride + n] = from_f32<X>(value);
    }
  }
};

inline RowsArgs args_of(int64_t T, const Tensor& w) {
  return {.w = w.raw(),
          .N = w.size(0),
          .w_stride = w.stride(0),
          .T = static_cast<int>(T),
          .K = static_cast<int>(w.size(1)),
          .part = 0};
}

template <class X>
Plain<X> plain_of(const Tensor& bias, const Tensor& y) {
  return {.bias = bias.defined() ? bias.data<float>() : nullptr,
          .y = y.raw(),
          .y_is_f32 = y.dtype() == DType::f32,
          .y_stride = y.stride(0)};
}

template <class X>
InMemory<X> in_memory(const Tensor& x) {
  return {reinterpret_cast<const X*>(x.raw()), x.stride(0)};
}

// Few warps a strip where they can hold all of K: more kernels then fit on the card side by side, so that the
// next one's weights are on their way before this one ends.
template <class X, int Rows, int Eights, int Depth, int MaxParts, int MinBlocks, class Source, class Epilogue>
void launch_rows(RowsArgs a, const Source& source, const Epilogue& epilogue) {
  const int steps = (a.K + kStep<X> - 1) / kStep<X>;
  int parts = 1;
  while (parts < MaxParts && parts * Depth < steps) parts *= 2;
  a.part = (steps + parts - 1) / parts * kStep<X>;
  const int strips = std::max(1, 4 / parts);
  const int64_t rows = int64_t{strips} * 8 * Eights;
  const size_t staged = Source::kStaged ? sizeof(X) * static_cast<size_t>(a.T) * static_cast<size_t>(a.K) : 0;
  launch({.grid = dim3(static_cast<unsigned>((a.N + rows - 1) / rows)),
          .block = dim3(32, static_cast<unsigned>(parts), static_cast<unsigned>(strips)),
          .shared_bytes = sizeof(float) * Rows * 8 * Eights * static_cast<size_t>(parts * strips) + staged,
          .overlaps_previous = true},
         linear_rows_kernel<X, Rows, Eights, Depth, MaxParts, MinBlocks, Source, Epilogue>, a, source,
         epilogue);
}

constexpr int kShort = 48;  // steps of K that eight warps hold with less than all registers

// Of up to 8 rows, from memory.
template <class X, class Epilogue>
void launch_eight_rows(const RowsArgs& a, const InMemory<X>& x, const Epilogue& epilogue) {
  if constexpr (sizeof(X) == 2) {
    a.K <= kShort* kStep<X> ? launch_rows<X, 8, 1, 6, 8, 3>(a, x, epilogue)
                            : launch_rows<X, 8, 1, 10, 16, 1>(a, x, epilogue);
  } else {
    a.T == 1 ? launch_rows<X, 1, 1, 10, 16, 1>(a, x, epilogue)
             : launch_rows<X, 8, 1, 10, 16, 1>(a, x, epilogue);
  }
}

}  // namespace ssm::cuda
