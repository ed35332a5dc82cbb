// One token of each sequence: the state is read and written once, and that is the work.
#include <algorithm>

#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;
template <int V>
constexpr int kRowsInFlight = V == 8 ? 4 : 8;

// One block a sequence, a head and `width` of its channels. A thread has V channels of every `rows`-th row of
// N, kUnroll of them in flight; S is the state's type, X the activations'. The first `early` blocks, which
// are on the card while the kernel before ends, meanwhile fetch their state to L2. Where there are more, a
// block does so for the one that comes `ahead` blocks later, in its place.
template <int V, class X, class S>
__global__ void __launch_bounds__(kThreads, V == 8 ? 3 : 4)
    ssd_scan_step_kernel(const SsdView a, int width, int early, int ahead) {
  constexpr int kUnroll = kRowsInFlight<V>;
  extern __shared__ float shared[];
  const int parts = (a.P + width - 1) / width;
  const int part = static_cast<int>(blockIdx.x % parts);
  const int head = static_cast<int>(blockIdx.x / parts % a.H);
  const int64_t b = blockIdx.x / (int64_t{parts} * a.H);
  const int columns = width / V, rows = kThreads / columns, slab = rows * kUnroll;
  const int column = threadIdx.x % columns, row = threadIdx.x / columns;
  const int p = part * width + column * V;
  const bool active = row < rows && p < a.P;
  float* const sB = shared;  // [slab] dt' B
  float* const sC = sB + slab;
  float* const sums = sC + slab;  // [rows or warps, width]
  const int64_t of_head = int64_t{a.N} * a.P;
  S* const states = a.state ? static_cast<S*>(a.state) + head * of_head + p : nullptr;
  const float A = a.A[head];
  const float bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  if (blockIdx.x < early && active && states) {
    const int64_t slot = a.batch.slots[b];  // perhaps the last step's, and then of no use
    if (slot >= 0 && slot < a.slots) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int n = row + u * rows;
        if (n < a.N) prefetch(states + slot * a.H * of_head + int64_t{n} * a.P);
      }
    }
  }
  grid_dependency_wait();
  let_next_start();

  const int64_t group_column = int64_t{head / (a.H / a.G)} * a.N;
  const X* const B = static_cast<const X*>(a.B) + b * a.B_stride + group_column;
  const X* const C = static_cast<const X*>(a.C) + b * a.C_stride + group_column;
  const X* const x_row = static_cast<const X*>(a.x) + b * a.x_stride + int64_t{head} * a.P;
  S* const state = states ? states + a.batch.slots[b] * a.H * of_head : nullptr;
  const float raw = to_f32(static_cast<const X*>(a.dt)[b * a.dt_stride + head]);
  float x[V] = {}, y[V] = {};
  if (active) {
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = to_f32(x_row[p + i]);
  }
  const float dt = ssd_step_size(a, raw + bias), decay = expf(dt * A);
  for (int first = 0; first < a.N; first += slab) {
    float h[kUnroll][V] = {};
    if (active && state) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int n = first + row + u * rows;
        if (n < a.N) load<V>(h[u], state + int64_t{n} * a.P);
      }
    }
    if (ahead > 0 && first == 0) {
      const int64_t later = blockIdx.x + int64_t{ahead}, later_b = later / a.H;
      if (later < gridDim.x && a.state) {
        const auto* const at = static_cast<const unsigned char*>(a.state) +
                               (a.batch.slots[later_b] * a.H + later % a.H) * of_head * sizeof(S);
        for (int64_t i = threadIdx.x * 128; i < of_head * static_cast<int64_t>(sizeof(S));
             i += kThreads * 128)
          prefetch(at + i);
      }
    }
    if (first > 0) __syncthreads();  // the slab before this one was read
    for (int i = threadIdx.x; i < slab; i += kThreads) {
      const bool there = first + i < a.N;
      sB[i] = there ? dt * to_f32(B[first + i]) : 0.0f;
      sC[i] = there ? to_f32(C[first + i]) : 0.0f;
    }
    __syncthreads();
    if (!active) continue;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int i = row + u * rows;
      const float in = sB[i], out = sC[i];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        h[u][v] = fmaf(in, x[v], decay * h[u][v]);
        y[v] = fmaf(out, h[u][v], y[v]);
      }
      if (state && first + i < a.N) store<V>(state + int64_t{first + i} * a.P, h[u]);
    }
  }
  // The sum over rows: within a warp where its lanes share columns, then over what is left.
  int left = rows;
  if (32 % columns == 0) {
    for (int offset = columns; offset < 32; offset *= 2) {
#pragma unroll
      for (int i = 0; i < V; ++i) y[i] += __shfl_xor_sync(0xffffffffu, y[i], offset);
    }
    left = kThreads / 32;
    if (threadIdx.x % 32 < columns) {
#pragma unroll
      for (int i = 0; i < V; ++i) sums[(threadIdx.x / 32 * columns + column) * V + i] = y[i];
    }
  } else if (active) {
#pragma unroll
    for (int i = 0; i < V; ++i) sums[threadIdx.x * V + i] = y[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width && part * width + i < a.P; i += kThreads) {
    float sum = 0;
    for (int r = 0; r < left; ++r) sum += sums[r * width + i];
    const int q = part * width + i;
    if (a.D) sum = fmaf(a.D[a.D_by_channel ? int64_t{head} * a.P + q : head], to_f32(x_row[q]), sum);
    static_cast<X*>(a.y)[b * a.y_stride + int64_t{head} * a.P + q] = from_f32<X>(sum);
  }
}

}  // namespace

void launch_ssd_step(const SsdView& a) {
  const int vector = static_cast<int>(16 / size_of(a.state_dtype));
  const int V = a.P % vector == 0 ? vector : 1;
  const int64_t pairs = a.batch.size * a.H;
  // All of a head, unless that leaves multiprocessors idle.
  int width = std::min((a.P + V - 1) / V * V, kThreads * V);
  while (width % (2 * V) == 0 && width > 16 &&
         pairs * ((a.P + width - 1) / width) < properties().multiprocessors)
    width /= 2;
  const int64_t blocks = pairs * ((a.P + width - 1) / width);
  const int multiprocessors = properties().multiprocessors;
  const int early = 2 * multiprocessors;
  dispatch(a.dtype, "ssd_scan", [&](auto x_zero) {
    dispatch(a.state_dtype, "ssd_scan", [&](auto state_zero) {
      using X = decltype(x_zero);
      using S = decltype(state_zero);
      constexpr int kVector = 16 / sizeof(S);
      const int slab = kThreads / (width / V) * (V == 1 ? kRowsInFlight<1> : kRowsInFlight<kVector>);
      const Launch how{.grid = dim3(static_cast<unsigned>(blocks)),
                       .block = dim3(kThreads),
                       .shared_bytes = sizeof(float) * static_cast<size_t>(2 * slab + kThreads * V),
                       .overlaps_previous = true};
      const int ahead = blocks <= early || width < a.P ? 0 : multiprocessors;
      launch(how, V == 1 ? ssd_scan_step_kernel<1, X, S> : ssd_scan_step_kernel<kVector, X, S>, a, width,
             early, ahead);
    });
  });
}

}  // namespace ssm::cuda
