// A thread owns V neighbouring channels. Forward: it walks a chunk of one sequence's rows with the last K - 1
// inputs in registers, so a row is read once, and K - 1 rows again at each chunk's start. Step: one token.
//
// The state is read by the block of a sequence's first chunk. That block writes the new one as well (the last
// rows of x, wherever they lie), so nobody overwrites what another block has yet to read.
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/causal_conv1d/causal_conv1d_cuda.h"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTaps = 4;  // the width with kernels of its own: that of every known model

struct ConvArgs {
  const void* x;
  const float* weight;
  const float* bias;  // or null
  float* state;       // [slots, K - 1, C], or null
  void* y;
  int64_t x_stride, y_stride;
  int64_t tap_stride, channel_stride;  // of weight
  int64_t C, slots;
  int K;
  bool silu;
  bool vectors;          // bias, and weights of one tap, can be loaded 16 bytes at a time
  int64_t chunk_length;  // rows
  int64_t channel_blocks;
  Batch batch;
};

template <int V>
__device__ __forceinline__ void load_floats(float (&to)[V], const float* from) {
  widen<V>(to, load_wide<V>(from));
}

template <int V>
__device__ __forceinline__ void load_tap(const ConvArgs& a, int k, int64_t c, float (&to)[V]) {
  const float* from = a.weight + k * a.tap_stride + c * a.channel_stride;
  if (V > 1 && a.vectors) {
    load_floats<V>(to, from);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = from[i * a.channel_stride];
  }
}

template <int V>
__device__ __forceinline__ void load_bias(const ConvArgs& a, int64_t c, float (&to)[V]) {
  if (!a.bias) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = 0.0f;
  } else if (V > 1 && a.vectors) {
    load_floats<V>(to, a.bias + c);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = a.bias[c + i];
  }
}

template <int V, class T>
__device__ __forceinline__ void finish_row(const ConvArgs& a, int64_t t, int64_t c, float (&sum)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = a.silu ? silu(sum[i]) : sum[i];
  store<V>(static_cast<T*>(a.y) + t * a.y_stride + c, sum);
}

// Channels [c, c + V) of one sequence's inputs, by row of the sequence: negative rows stand in its state.
template <int V, class T>
struct Inputs {
  const T* x;
  int64_t x_stride;
  float* state;  // or null
  int64_t C;
  int before;  // K - 1

  __device__ Inputs(const ConvArgs& a, int64_t b, int64_t c)
      : x(static_cast<const T*>(a.x) + a.batch.offsets[b] * a.x_stride + c),
        x_stride(a.x_stride),
        state(a.state ? a.state + a.batch.slots[b] * (a.K - 1) * a.C + c : nullptr),
        C(a.C),
        before(a.K - 1) {}

  __device__ __forceinline__ void read(int64_t row, float (&to)[V]) const {
    if (row >= 0) {
      load<V>(to, x + row * x_stride);
    } else if (state) {
      load_floats<V>(to, state + (before + row) * C);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = 0.0f;
    }
  }

  // Ascending: with fewer new rows than the state holds, row j becomes row j + length, not yet written.
  __device__ __forceinline__ void update_state(int64_t length) const {
    for (int j = 0; state && j < before; ++j) {
      float value[V];
      read(length - before + j, value);
      store_wide<V>(state + j * C, value);
    }
  }
};

template <int V>
__device__ __forceinline__ void add_product(float (&sum)[V], const float (&w)[V], const float (&x)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = fmaf(w[i], x[i], sum[i]);
}

template <int V>
__device__ __forceinline__ void copy(float (&to)[V], const float (&from)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = from[i];
}

// kK taps, or with kK = 0 any number, read again for each row. kAhead rows are under way while those before
// them are used; more cost registers.
template <int kK, int V, int kAhead, class T>
__global__ void __launch_bounds__(kThreads) causal_conv1d_forward_kernel(const ConvArgs a) {
  const int64_t c = (blockIdx.x % a.channel_blocks * kThreads + threadIdx.x) * V;
  const bool idle = c >= a.C;
  float bias[V];
  float weight[kK ? kK : 1][V];
  if (!idle) {
    load_bias<V>(a, c, bias);
#pragma unroll
    for (int k = 0; k < kK; ++k) load_tap<V>(a, k, c, weight[k]);
  }
  grid_dependency_wait();
  let_next_start();
  if (idle) return;
  const Chunk chunk = chunk_of(a.batch, blockIdx.x / a.channel_blocks, a.chunk_length);
  if (chunk.sequence < 0) return;
  const Inputs<V, T> in(a, chunk.sequence, c);
  const int64_t first = a.batch.offsets[chunk.sequence];
  const int64_t begin = chunk.begin - first, end = chunk.end - first;

  if constexpr (kK > 0) {
    // The next rows are under way while those before them are used.
    Pack<T, V> next[kAhead];
    const auto load_next = [&](int64_t t) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (t + i < end) next[i] = load_pack<V>(in.x + (t + i) * in.x_stride);
      }
    };
    load_next(begin);
    float row[kK - 1 + kAhead][V];  // the kK - 1 inputs before the next, then these
#pragma unroll
    for (int j = 0; j < kK - 1; ++j) in.read(begin - (kK - 1) + j, row[j]);
    for (int64_t t = begin; t < end; t += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) widen<V>(row[kK - 1 + i], next[i]);
      load_next(t + kAhead);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float sum[V];
        copy(sum, bias);
#pragma unroll
        for (int k = 0; k < kK; ++k) add_product(sum, weight[k], row[i + k]);
        if (t + i < end) finish_row<V, T>(a, first + t + i, c, sum);
      }
#pragma unroll
      for (int j = 0; j < kK - 1; ++j) copy(row[j], row[kAhead + j]);
    }
  } else {
    for (int64_t t = begin; t < end; ++t) {
      float sum[V];
      copy(sum, bias);
      for (int k = 0; k < a.K; ++k) {
        float w[V], x[V];
        load_tap<V>(a, k, c, w);
        in.read(t - (a.K - 1) + k, x);
        add_product(sum, w, x);
      }
      finish_row<V, T>(a, first + t, c, sum);
    }
  }
  if (chunk.index == 0) in.update_state(a.batch.offsets[chunk.sequence + 1] - first);
}

// One token a sequence: block row b is sequence and row b.
template <int kK, int V, class T>
__global__ void __launch_bounds__(kThreads) causal_conv1d_step_kernel(const ConvArgs a) {
  const int64_t b = blockIdx.x / a.channel_blocks;
  const int64_t c = (blockIdx.x % a.channel_blocks * kThreads + threadIdx.x) * V;
  const bool idle = c >= a.C;
  float sum[V];
  float weight[kK ? kK : 1][V];
  if (!idle) {
    load_bias<V>(a, c, sum);
#pragma unroll
    for (int k = 0; k < kK; ++k) load_tap<V>(a, k, c, weight[k]);
    // The window comes into L2 while the kernel ahead ends; whatever that one may still write is read later.
    if (a.state && threadIdx.x % (32 / V) == 0) {
      const int64_t slot = a.batch.slots[b];  // perhaps the last step's, and then of no use
      if (slot >= 0 && slot < a.slots) {
        const float* const window = a.state + slot * (a.K - 1) * a.C + c;
        for (int k = 0; k < a.K - 1; ++k) prefetch(window + k * a.C);
      }
    }
  }
  grid_dependency_wait();
  let_next_start();
  if (idle) return;
  const Inputs<V, T> in(a, b, c);
  if constexpr (kK > 0) {
    float row[kK][V];
#pragma unroll
    for (int k = 0; k < kK; ++k) in.read(k - (kK - 1), row[k]);
#pragma unroll
    for (int k = 0; k < kK; ++k) add_product(sum, weight[k], row[k]);
#pragma unroll
    for (int k = 0; in.state && k < kK - 1; ++k) store_wide<V>(in.state + k * a.C, row[k + 1]);
  } else {
    for (int k = 0; k < a.K; ++k) {
      float w[V], x[V];
      load_tap<V>(a, k, c, w);
      in.read(k - (a.K - 1), x);
      add_product(sum, w, x);
    }
    in.update_state(1);
  }
  finish_row<V, T>(a, b, c, sum);
}

// Whether V elements of each row of a [T, C] tensor are one access.
bool rows_allow(const Tensor& t, int V) {
  const size_t bytes = size_of(t.dtype());
  return is_multiple(t.size(1), V) && is_aligned(t.raw(), V * bytes) &&
         (is_multiple(t.stride(0), V) || t.size(0) == 1);
}

}  // namespace

void causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                   const SequenceBatch& batch, const Tensor& state, const Tensor& y) {
  const int64_t C = x.size(1), K = weight.size(1);
  ConvArgs a{.x = x.raw(),
             .weight = weight.data<float>(),
             .bias = bias.defined() ? bias.data<float>() : nullptr,
             .state = state.defined() ? state.data<float>() : nullptr,
             .y = y.raw(),
             .x_stride = x.stride(0),
             .y_stride = y.stride(0),
             .tap_stride = weight.stride(1),
             .channel_stride = weight.stride(0),
             .C = C,
             .slots = state.defined() ? state.size(0) : 0,
             .K = static_cast<int>(K),
             .silu = activation == Activation::silu,
             .vectors = false,
             .chunk_length = 1,
             .channel_blocks = 1,
             .batch = view_of(batch, x.device())};
  a.vectors =
      a.channel_stride == 1 && is_multiple(a.tap_stride, 4) && is_aligned(a.weight) && is_aligned(a.bias);
  const bool step = batch.is_step();
  // 16 bytes of x a thread; of the f32 state in a step.
  const int wide = !step && size_of(x.dtype()) == 2 ? 8 : 4;
  const bool vectors = rows_allow(x, wide) && rows_allow(y, wide) && is_aligned(a.state);
  const int V = vectors ? wide : 1;
  a.channel_blocks = (C + int64_t{kThreads} * V - 1) / (int64_t{kThreads} * V);
  int64_t rows = batch.size();
  bool few = false;  // rows: what counts is how soon a block is done
  if (!step) {
    // Long chunks read few rows twice, short ones fill a card: some 4 blocks a multiprocessor.
    const int64_t slots = 4 * properties().multiprocessors;
    const auto rows_to_fill = [&] { return (batch.total() * a.channel_blocks + slots - 1) / slots; };
    few = vectors && K == kTaps && rows_to_fill() < 16;
    if (few) a.channel_blocks = (C + kThreads * 4 - 1) / (kThreads * 4);
    a.chunk_length = std::clamp<int64_t>((rows_to_fill() + 3) / 4 * 4, 8, 64);
    a.chunk_length = std::max(a.chunk_length, K - 1);  // so that only a first chunk looks into the state
    rows = chunk_numbers(a.batch, a.chunk_length);
  }
  const Launch how{.grid = dim3(static_cast<unsigned>(rows * a.channel_blocks)),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  dispatch(x.dtype(), "causal_conv1d", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWide = 16 / sizeof(T);
    if (step && K == kTaps) {
      launch(how, vectors ? causal_conv1d_step_kernel<kTaps, 4, T> : causal_conv1d_step_kernel<kTaps, 1, T>,
             a);
    } else if (step) {
      launch(how, vectors ? causal_conv1d_step_kernel<0, 4, T> : causal_conv1d_step_kernel<0, 1, T>, a);
    } else if (K == kTaps) {
      launch(how,
             few       ? causal_conv1d_forward_kernel<kTaps, 4, 4, T>
             : vectors ? causal_conv1d_forward_kernel<kTaps, kWide, 2, T>
                       : causal_conv1d_forward_kernel<kTaps, 1, 2, T>,
             a);
    } else {
      launch(
          how,
          vectors ? causal_conv1d_forward_kernel<0, kWide, 2, T> : causal_conv1d_forward_kernel<0, 1, 2, T>,
          a);
    }
  });
}

}  // namespace ssm::cuda
