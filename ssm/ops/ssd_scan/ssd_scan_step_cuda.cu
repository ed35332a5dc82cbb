// One token of each sequence: the state is read and written once, and that is the work.
#include <algorithm>

#include "ssm/ops/cuda/launch.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

// One block a sequence, a head and `width` of its channels. A thread has V channels of every `rows`-th row of
// N; S is the state's type, X the activations'.
template <int V, class X, class S>
__global__ void __launch_bounds__(kThreads) ssd_scan_step_kernel(const SsdView a, int width) {
  constexpr int kUnroll = V == 8 ? 4 : 8;  // rows in flight
  __shared__ float sums[kThreads * V];
  const int parts = (a.P + width - 1) / width;
  const int part = static_cast<int>(blockIdx.x % parts);
  const int head = static_cast<int>(blockIdx.x / parts % a.H);
  const int64_t b = blockIdx.x / (int64_t{parts} * a.H);
  const int columns = width / V, rows = kThreads / columns;
  const int column = threadIdx.x % columns, row = threadIdx.x / columns;
  const int p = part * width + column * V;
  const bool active = row < rows && p < a.P;
  const float A = a.A[head];
  grid_dependency_wait();
  let_next_start();

  const int64_t token = b;  // lengths are 1
  const int64_t group_column = int64_t{head / (a.H / a.G)} * a.N;
  const X* const B = static_cast<const X*>(a.B) + token * a.B_stride + group_column;
  const X* const C = static_cast<const X*>(a.C) + token * a.C_stride + group_column;
  S* const state =
      a.state ? static_cast<S*>(a.state) + (a.batch.slots[b] * int64_t{a.H} + head) * a.N * int64_t{a.P} + p
              : nullptr;
  const float dt = ssd_step_size(a, to_f32(static_cast<const X*>(a.dt)[token * a.dt_stride + head]), head);
  const float decay = expf(dt * A);
  float x[V] = {}, y[V] = {};
  if (active) {
    const X* const from = static_cast<const X*>(a.x) + token * a.x_stride + int64_t{head} * a.P + p;
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = to_f32(from[i]);
    for (int first = row; first < a.N; first += rows * kUnroll) {
      float h[kUnroll][V] = {};
      if (state) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int n = first + u * rows;
          if (n < a.N) load<V>(h[u], state + int64_t{n} * a.P);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int n = first + u * rows;
        if (n >= a.N) break;
        const float in = dt * to_f32(B[n]), out = to_f32(C[n]);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          h[u][i] = fmaf(in, x[i], decay * h[u][i]);
          y[i] = fmaf(out, h[u][i], y[i]);
        }
        if (state) store<V>(state + int64_t{n} * a.P, h[u]);
      }
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
    const int64_t channel = int64_t{head} * a.P + part * width + i;
    if (a.D) {
      sum = fmaf(a.D[a.D_by_channel ? channel : head],
                 to_f32(static_cast<const X*>(a.x)[token * a.x_stride + channel]), sum);
    }
    static_cast<X*>(a.y)[token * a.y_stride + channel] = from_f32<X>(sum);
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
  const auto blocks = static_cast<unsigned>(pairs * ((a.P + width - 1) / width));
  const Launch how{.grid = dim3(blocks), .block = dim3(kThreads), .overlaps_previous = true};
  dispatch(a.dtype, "ssd_scan", [&](auto x_zero) {
    dispatch(a.state_dtype, "ssd_scan", [&](auto state_zero) {
      using X = decltype(x_zero);
      using S = decltype(state_zero);
      constexpr int kVector = 16 / sizeof(S);
      launch(how, V == 1 ? ssd_scan_step_kernel<1, X, S> : ssd_scan_step_kernel<kVector, X, S>, a, width);
    });
  });
}

}  // namespace ssm::cuda
