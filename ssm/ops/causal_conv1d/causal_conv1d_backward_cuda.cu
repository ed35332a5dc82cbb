// A block walks a chunk of one sequence's rows, a thread V neighbouring channels of it. With kTaps taps it
// holds the last inputs and the last ds in registers: an input and dy are read once, and again the kTaps - 1
// rows around a chunk's ends. Any other width writes ds to memory first and reads it from there. The weights'
// gradients are summed over a chunk, and the chunks' sums added in their order.
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/causal_conv1d/causal_conv1d_cuda.h"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTaps = 4;   // the width of every known model
constexpr int kAhead = 4;  // rows under way while those before them are used
// Blocks of a multiprocessor.
template <int V>
constexpr int kBlocks = V == 4 ? 4 : 5;
constexpr int kSlices = 8;  // of the chunks, summed by a thread each

struct ConvBackwardArgs {
  const void *x, *dy;
  const float *weight, *bias, *initial;  // bias [C] and initial [B, K - 1, C] may be null
  void* dx;                              // or null
  float* ds;                             // [T, C], where K is not kTaps
  float* sums;                           // [chunk numbers, K + 1, C], or null
  int64_t x_stride, dy_stride, dx_stride;
  int64_t tap_stride, channel_stride;  // of weight
  int64_t C, channel_blocks, chunk_length;
  int K;
  bool silu;
  Batch batch;
};

__device__ __forceinline__ float silu_slope(float x) {
  const float s = sigmoid(x);
  return s * fmaf(x, 1.0f - s, 1.0f);
}

// Row `row` of sequence b; negative rows stand before it.
template <int V, class T>
__device__ __forceinline__ void read_input(const ConvBackwardArgs& a, int64_t b, int64_t row, int64_t c,
                                           float (&to)[V]) {
  if (row >= 0) {
    load<V>(to, static_cast<const T*>(a.x) + (a.batch.offsets[b] + row) * a.x_stride + c);
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i)
    to[i] = a.initial ? a.initial[(b * (a.K - 1) + a.K - 1 + row) * a.C + c + i] : 0.0f;
}

template <int V, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    causal_conv1d_backward_kernel(const ConvBackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x / a.channel_blocks;
  const int64_t c = (blockIdx.x % a.channel_blocks * kThreads + threadIdx.x) * V;
  if (c >= a.C) return;
  const Chunk chunk = chunk_of(a.batch, number, a.chunk_length);
  float dweight[kTaps][V] = {}, dbias[V] = {};
  if (chunk.sequence >= 0) {
    const int64_t b = chunk.sequence, begin = a.batch.offsets[b], length = a.batch.offsets[b + 1] - begin;
    const int first = static_cast<int>(chunk.end - chunk.begin);
    const int64_t row0 = chunk.begin - begin;
    // Rows of this chunk, and those after it that its dx needs.
    const int rows = static_cast<int>(min(int64_t{first} + kTaps - 1, length - row0));
    const T* const x_rows = static_cast<const T*>(a.x) + chunk.begin * a.x_stride + c;
    const T* const dy_rows = static_cast<const T*>(a.dy) + chunk.begin * a.dy_stride + c;
    T* const dx_rows = static_cast<T*>(a.dx) + chunk.begin * a.dx_stride + c;
    float w[kTaps][V], bias[V], x[kTaps][V], ds[kTaps][V] = {};
#pragma unroll
    for (int i = 0; i < V; ++i) {
      bias[i] = a.bias ? a.bias[c + i] : 0.0f;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) w[k][i] = a.weight[k * a.tap_stride + (c + i) * a.channel_stride];
    }
#pragma unroll
    for (int k = 0; k < kTaps - 1; ++k) read_input<V, T>(a, b, row0 - (kTaps - 1) + k, c, x[k]);
    Pack<T, V> next_x[kAhead]{}, next_dy[kAhead]{};
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (j < rows) next_x[j] = load_pack<V>(x_rows + j * a.x_stride);
      if (j < rows) next_dy[j] = load_pack<V>(dy_rows + j * a.dy_stride);
    }
    const T* x_ahead = x_rows + kAhead * a.x_stride;
    const T* dy_ahead = dy_rows + kAhead * a.dy_stride;
    T* dx_row = dx_rows;
    for (int r0 = 0; r0 < first + kTaps - 1; r0 += kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int r = r0 + j;
        if (r >= first + kTaps - 1) break;
        float dy[V];
        widen<V>(x[kTaps - 1], next_x[j]);
        widen<V>(dy, next_dy[j]);
        if (r + kAhead < rows) {
          next_x[j] = load_pack<V>(x_ahead);
          next_dy[j] = load_pack<V>(dy_ahead);
        }
        x_ahead += a.x_stride, dy_ahead += a.dy_stride;
#pragma unroll
        for (int i = 0; i < V; ++i) {
#pragma unroll
          for (int k = kTaps - 1; k > 0; --k) ds[k][i] = ds[k - 1][i];  // ds[k] is of row r - k
          float s = bias[i];
#pragma unroll
          for (int k = 0; k < kTaps; ++k) s = fmaf(w[k][i], x[k][i], s);
          ds[0][i] = r < rows ? (a.silu ? dy[i] * silu_slope(s) : dy[i]) : 0.0f;
          if (r < first) {
            dbias[i] += ds[0][i];
#pragma unroll
            for (int k = 0; k < kTaps; ++k) dweight[k][i] = fmaf(ds[0][i], x[k][i], dweight[k][i]);
          }
#pragma unroll
          for (int k = 0; k < kTaps - 1; ++k) x[k][i] = x[k + 1][i];
        }
        if (a.dx && r >= kTaps - 1) {
          float dx[V] = {};
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
#pragma unroll
            for (int i = 0; i < V; ++i) dx[i] = fmaf(w[k][i], ds[k][i], dx[i]);
          }
          store<V>(dx_row, dx);
          dx_row += a.dx_stride;
        }
      }
    }
  }
  if (!a.sums) return;
  float* const to = a.sums + number * (kTaps + 1) * a.C + c;
#pragma unroll
  for (int i = 0; i < V; ++i) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) to[k * a.C + i] = dweight[k][i];
    to[kTaps * a.C + i] = dbias[i];
  }
}

// Any width, first half: ds.
template <class T>
__global__ void __launch_bounds__(kThreads) causal_conv1d_slope_kernel(const ConvBackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t c = blockIdx.x % a.channel_blocks * kThreads + threadIdx.x;
  const Chunk chunk = chunk_of(a.batch, blockIdx.x / a.channel_blocks, a.chunk_length);
  if (c >= a.C || chunk.sequence < 0) return;
  const int64_t begin = a.batch.offsets[chunk.sequence];
  for (int64_t t = chunk.begin; t < chunk.end; ++t) {
    float s = a.bias ? a.bias[c] : 0.0f;
    for (int k = 0; k < a.K; ++k) {
      float x[1];
      read_input<1, T>(a, chunk.sequence, t - begin - (a.K - 1) + k, c, x);
      s = fmaf(a.weight[k * a.tap_stride + c * a.channel_stride], x[0], s);
    }
    const float dy = to_f32(static_cast<const T*>(a.dy)[t * a.dy_stride + c]);
    a.ds[t * a.C + c] = a.silu ? dy * silu_slope(s) : dy;
  }
}

// Second half.
template <class T>
__global__ void __launch_bounds__(kThreads) causal_conv1d_any_backward_kernel(const ConvBackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t c = blockIdx.x % a.channel_blocks * kThreads + threadIdx.x,
                number = blockIdx.x / a.channel_blocks;
  const Chunk chunk = chunk_of(a.batch, number, a.chunk_length);
  if (c >= a.C) return;
  const bool there = chunk.sequence >= 0;
  const int64_t begin = there ? a.batch.offsets[chunk.sequence] : 0;
  const int64_t end = there ? a.batch.offsets[chunk.sequence + 1] : 0;
  for (int64_t t = chunk.begin; a.dx && t < chunk.end; ++t) {
    float dx = 0.0f;
    for (int k = a.K - 1; k >= 0 && t + a.K - 1 - k < end; --k)
      dx = fmaf(a.weight[k * a.tap_stride + c * a.channel_stride], a.ds[(t + a.K - 1 - k) * a.C + c], dx);
    static_cast<T*>(a.dx)[t * a.dx_stride + c] = from_f32<T>(dx);
  }
  for (int k = 0; a.sums && k <= a.K; ++k) {
    float sum = 0.0f;
    for (int64_t t = chunk.begin; t < chunk.end; ++t) {
      float x[1] = {1.0f};
      if (k < a.K) read_input<1, T>(a, chunk.sequence, t - begin - (a.K - 1) + k, c, x);
      sum = fmaf(a.ds[t * a.C + c], x[0], sum);
    }
    a.sums[(number * (a.K + 1) + k) * a.C + c] = sum;
  }
}

struct ConvSumArgs {
  const float* sums;  // [numbers, K + 1, C]
  int64_t numbers, C;
  int K;
  float *dweight, *dbias;  // or null
  int64_t tap_stride, channel_stride, dbias_stride;
};

// A block is 32 columns of one k, its threads slices of the chunks.
__global__ void __launch_bounds__(32 * kSlices) causal_conv1d_backward_sum_kernel(const ConvSumArgs a) {
  __shared__ float parts[kSlices][32];
  grid_dependency_wait();
  let_next_start();
  const int64_t c = int64_t{blockIdx.x} * 32 + threadIdx.x;
  const int k = static_cast<int>(blockIdx.y);
  const int64_t slice = (a.numbers + kSlices - 1) / kSlices, first = threadIdx.y * slice;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t i = first; i < min(a.numbers, first + slice); ++i)
    sum += c < a.C ? a.sums[(i * (a.K + 1) + k) * a.C + c] : 0.0f;
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  float* const to = k < a.K ? a.dweight : a.dbias;
  if (threadIdx.y != 0 || c >= a.C || to == nullptr) return;
  for (int i = 1; i < kSlices; ++i) sum += parts[i][threadIdx.x];
  to[k < a.K ? k * a.tap_stride + c * a.channel_stride : c * a.dbias_stride] += sum;
}

// Channels a thread takes, and rows a chunk has: long chunks read few rows twice and leave few sums, short
// ones fill a card. Four channels a thread where that makes chunks of some length whose blocks run all at
// once.
struct Shares {
  int V;
  int64_t chunk_length;
};
Shares shares_of(const ConvBackwardArgs& a, int64_t element) {
  constexpr int64_t kShortest = 48, kLongest = 256;
  const int64_t T = a.batch.total, multiprocessors = properties().multiprocessors;
  const auto fits = [&](int64_t V) {
    const auto rows = [&](const void* p, int64_t stride) {
      return is_aligned(p, static_cast<size_t>(V * element)) && stride % V == 0;
    };
    return a.K == kTaps && a.C % V == 0 && rows(a.x, a.x_stride) && rows(a.dy, a.dy_stride) &&
           rows(a.dx, a.dx_stride);
  };
  const auto blocks_of = [&](int64_t V) { return (a.C + kThreads * V - 1) / (kThreads * V); };
  if (const int64_t chunks = kBlocks<4> * multiprocessors / blocks_of(4) - a.batch.size;
      chunks > 0 && T >= kShortest * chunks && fits(4)) {
    return {4, std::min(((T + chunks - 1) / chunks + kAhead - 1) / kAhead * kAhead, kLongest)};
  }
  const int64_t fill = T * blocks_of(2) / (6 * multiprocessors);
  return {fits(2) ? 2 : 1, std::clamp<int64_t>(fill / kAhead * kAhead, 16, 96)};
}

template <class T>
void backward(ConvBackwardArgs& a, int64_t numbers, int V) {
  const int64_t channels = kThreads * V;
  a.channel_blocks = (a.C + channels - 1) / channels;
  const Launch how{.grid = dim3(static_cast<unsigned>(numbers * a.channel_blocks)),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  if (a.K == kTaps) {
    launch(how,
           V == 4   ? causal_conv1d_backward_kernel<4, T>
           : V == 2 ? causal_conv1d_backward_kernel<2, T>
                    : causal_conv1d_backward_kernel<1, T>,
           a);
  } else {
    launch(how, causal_conv1d_slope_kernel<T>, a);
    launch(how, causal_conv1d_any_backward_kernel<T>, a);
  }
}

}  // namespace

void causal_conv1d_backward(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                            const SequenceBatch& batch, const Tensor& initial, const Tensor& dy,
                            const CausalConv1dGrads& grads) {
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const int64_t C = weight.size(0), K = weight.size(1), T = batch.total();
  ConvBackwardArgs a{};
  a.x = x.raw(), a.x_stride = x.stride(0), a.dy = dy.raw(), a.dy_stride = dy.stride(0);
  if (grads.dx.defined()) a.dx = grads.dx.raw(), a.dx_stride = grads.dx.stride(0);
  a.weight = floats(weight), a.bias = floats(bias), a.initial = floats(initial);
  a.tap_stride = weight.stride(1), a.channel_stride = weight.stride(0);
  a.C = C, a.K = static_cast<int>(K), a.silu = activation == Activation::silu;
  a.batch = view_of(batch, x.device());
  const Shares shares = shares_of(a, static_cast<int64_t>(size_of(x.dtype())));
  a.chunk_length = shares.chunk_length;
  const int64_t numbers = chunk_numbers(a.batch, a.chunk_length);
  Tensor ds, sums;
  if (K != kTaps) ds = Tensor::empty({T, C}, DType::f32, kCuda);
  if (grads.dweight.defined() || grads.dbias.defined())
    sums = Tensor::empty({numbers, K + 1, C}, DType::f32, kCuda);
  a.ds = floats(ds), a.sums = floats(sums);
  dispatch(x.dtype(), "causal_conv1d", [&](auto zero) { backward<decltype(zero)>(a, numbers, shares.V); });
  if (!sums.defined()) return;
  ConvSumArgs to{};
  to.sums = a.sums, to.numbers = numbers, to.C = C, to.K = a.K;
  to.dweight = floats(grads.dweight), to.dbias = floats(grads.dbias);
  if (to.dweight) to.tap_stride = grads.dweight.stride(1), to.channel_stride = grads.dweight.stride(0);
  if (to.dbias) to.dbias_stride = grads.dbias.stride(0);
  launch({.grid = dim3(static_cast<unsigned>((C + 31) / 32), static_cast<unsigned>(K + 1)),
          .block = dim3(32, kSlices),
          .overlaps_previous = true},
         causal_conv1d_backward_sum_kernel, to);
}

}  // namespace ssm::cuda
