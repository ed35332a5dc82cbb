// One token a sequence: the time is that of reading and writing the states. A thread owns V neighbouring
// channels and all of their states, kGroup of which it loads before it uses the first.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/selective_scan/selective_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 128;

struct StepArgs {
  SelectiveScanOperands s;
  int64_t channel_blocks;
  bool A_vectors;  // four channels of A, D and delta_bias can be loaded at once
};

template <int V>
__device__ __forceinline__ void load_A(const StepArgs& a, int64_t e, int n, float (&to)[V]) {
  const float* from = a.s.A + e * a.s.A_channel_stride + n * a.s.A_state_stride;
  if (V > 1 && a.A_vectors) {
    load<V>(to, from);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = from[i * a.s.A_channel_stride];
  }
}

// States of V channels loaded before the first is used. Less to load takes fewer registers and more threads.
template <class S, int V>
constexpr int kStatesAhead = V == 1           ? 16
                             : sizeof(S) == 4 ? 8
                                              : 4;

template <class T, class S, int V>
__global__ void __launch_bounds__(kThreads, V == 1           ? 1
                                            : sizeof(S) == 4 ? 4
                                                             : 6)
    selective_scan_step_kernel(const StepArgs a) {
  constexpr int kGroup = kStatesAhead<S, V>;
  __shared__ float B[kMaxStates], C[kMaxStates];
  const SelectiveScanOperands& s = a.s;
  const int64_t b = blockIdx.x / a.channel_blocks;
  const int64_t e = (blockIdx.x % a.channel_blocks * kThreads + threadIdx.x) * V;
  const bool idle = e >= s.E;
  float A[kGroup][V], D[V], bias[V];
  const auto load_As = [&](int n0) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (n0 + j < s.N) load_A<V>(a, e, n0 + j, A[j]);
    }
  };
  if (!idle) {  // parameters: no kernel writes them
    load_As(0);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      D[i] = s.D ? s.D[e + i] : 0.0f;
      bias[i] = s.delta_bias ? s.delta_bias[e + i] : 0.0f;
    }
  }
  grid_dependency_wait();
  let_next_start();
  S* state = s.state ? static_cast<S*>(s.state) + s.batch.slots[b] * s.N * s.E + e : nullptr;
  Pack<S, V> loaded[kGroup];
  const auto load_states = [&](int n0) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      loaded[j] = Pack<S, V>{};
      if (state && n0 + j < s.N) loaded[j] = load_pack<V>(state + (n0 + j) * s.E);
    }
  };
  Pack<T, V> packs[3] = {};
  if (!idle) {
    load_states(0);
    packs[0] = load_pack<V>(static_cast<const T*>(s.u) + b * s.u_stride + e);
    packs[1] = load_pack<V>(static_cast<const T*>(s.delta) + b * s.delta_stride + e);
    if (s.z) packs[2] = load_pack<V>(static_cast<const T*>(s.z) + b * s.z_stride + e);
  }
  for (int n = threadIdx.x; n < s.N; n += kThreads) {
    B[n] = to_f32(static_cast<const T*>(s.B)[b * s.B_stride + n]);
    C[n] = to_f32(static_cast<const T*>(s.C)[b * s.C_stride + n]);
  }
  __syncthreads();
  if (idle) return;
  float u[V], delta[V], z[V], sum[V];
  widen<V>(u, packs[0]);
  widen<V>(delta, packs[1]);
  widen<V>(z, packs[2]);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    delta[i] += bias[i];
    if (s.delta_softplus) delta[i] = softplus(delta[i]);
    sum[i] = D[i] * u[i];
    u[i] *= delta[i];
    delta[i] *= kLog2e;
  }
  for (int n0 = 0; n0 < s.N; n0 += kGroup) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (n0 + j >= s.N) break;
      float h[V];
      widen<V>(h, loaded[j]);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        h[i] = fmaf(exp2_fast(delta[i] * A[j][i]), h[i], u[i] * B[n0 + j]);
        sum[i] = fmaf(C[n0 + j], h[i], sum[i]);
      }
      if (state) store<V>(state + (n0 + j) * s.E, h);
    }
    if (n0 + kGroup < s.N) {
      load_states(n0 + kGroup);
      load_As(n0 + kGroup);
    }
  }
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = s.z ? sum[i] * silu(z[i]) : sum[i];
  store<V>(static_cast<T*>(s.y) + b * s.y_stride + e, sum);
}

}  // namespace

void selective_scan_step(const SelectiveScanOperands& s, DType type) {
  constexpr int kWide = 4;
  const int64_t B = s.batch.size;
  const size_t bytes = kWide * size_of(type);
  bool vectors = is_multiple(s.E, kWide) && is_aligned(s.state, kWide * size_of(s.state_type));
  for (const void* p : {s.u, s.delta, s.z, static_cast<const void*>(s.y)})
    vectors = vectors && is_aligned(p, bytes);
  for (const int64_t stride : {s.u_stride, s.delta_stride, s.z_stride, s.y_stride})
    vectors = vectors && is_multiple(stride, kWide);
  // Four channels a thread once there are blocks enough; narrow states need more of them under way.
  const int64_t blocks = B * s.E / (kWide * kThreads);
  vectors = vectors && 2 * blocks >= (s.state_type == DType::f32 ? 3 : 8) * properties().multiprocessors;
  const int V = vectors ? kWide : 1;
  const StepArgs a{.s = s,
                   .channel_blocks = (s.E + int64_t{kThreads} * V - 1) / (int64_t{kThreads} * V),
                   .A_vectors = s.A_channel_stride == 1 && is_multiple(s.A_state_stride, kWide) &&
                                is_aligned(s.A, kWide * sizeof(float))};
  const Launch how{.grid = dim3(static_cast<unsigned>(B * a.channel_blocks)),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  dispatch(type, "selective_scan", [&](auto zero) {
    dispatch(s.state_type, "selective_scan", [&](auto state_zero) {
      using T = decltype(zero);
      using S = decltype(state_zero);
      launch(how, vectors ? selective_scan_step_kernel<T, S, kWide> : selective_scan_step_kernel<T, S, 1>, a);
    });
  });
}

}  // namespace ssm::cuda
