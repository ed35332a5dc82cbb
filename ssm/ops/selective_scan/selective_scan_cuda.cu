#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/launch.cuh"
#include "ssm/ops/selective_scan/selective_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(128) selective_scan_forward_kernel(const SelectiveScanOperands s) {
  grid_dependency_wait();
  let_next_start();
  const int64_t b = blockIdx.x, e = int64_t{blockIdx.y} * 128 + threadIdx.x;
  if (e >= s.E) return;
  const int64_t slot = s.batch.slots[b] * s.N * s.E + e;
  float h[kMaxStates];
  for (int n = 0; n < s.N; ++n) h[n] = s.state ? load_state(s.state, s.state_type, slot + n * s.E) : 0.0f;
  for (int64_t t = s.batch.offsets[b]; t < s.batch.offsets[b + 1]; ++t) {
    const float u = to_f32(static_cast<const T*>(s.u)[t * s.u_stride + e]);
    float delta = to_f32(static_cast<const T*>(s.delta)[t * s.delta_stride + e]);
    if (s.delta_bias) delta += s.delta_bias[e];
    if (s.delta_softplus) delta = softplus(delta);
    float sum = s.D ? s.D[e] * u : 0.0f;
    for (int n = 0; n < s.N; ++n) {
      const float decay = exp2_fast(delta * (kLog2e * s.A[e * s.A_channel_stride + n * s.A_state_stride]));
      h[n] = fmaf(decay, h[n], delta * u * to_f32(static_cast<const T*>(s.B)[t * s.B_stride + n]));
      sum = fmaf(to_f32(static_cast<const T*>(s.C)[t * s.C_stride + n]), h[n], sum);
    }
    if (s.z) sum *= silu(to_f32(static_cast<const T*>(s.z)[t * s.z_stride + e]));
    static_cast<T*>(s.y)[t * s.y_stride + e] = from_f32<T>(sum);
  }
  for (int n = 0; s.state && n < s.N; ++n) store_state(s.state, s.state_type, slot + n * s.E, h[n]);
}

}  // namespace

void selective_scan_forward(const SelectiveScanOperands& s, DType type) {
  dispatch(type, "selective_scan", [&](auto zero) {
    using T = decltype(zero);
    launch({.grid = dim3(static_cast<unsigned>(s.batch.size), static_cast<unsigned>((s.E + 127) / 128)),
            .block = dim3(128),
            .overlaps_previous = true},
           selective_scan_forward_kernel<T>, s);
  });
}

void selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                    const Tensor& y) {
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const int64_t N = args.A.size(1);
  SSM_CHECK(N <= kMaxStates, "selective_scan: {} states a channel, a card takes up to {}", N, kMaxStates);
  const SelectiveScanOperands s{.u = raw(args.u),
                                .delta = raw(args.delta),
                                .z = raw(args.z),
                                .B = raw(args.B),
                                .C = raw(args.C),
                                .y = raw(y),
                                .u_stride = stride(args.u),
                                .delta_stride = stride(args.delta),
                                .z_stride = stride(args.z),
                                .B_stride = stride(args.B),
                                .C_stride = stride(args.C),
                                .y_stride = stride(y),
                                .A = floats(args.A),
                                .A_channel_stride = args.A.stride(0),
                                .A_state_stride = args.A.stride(1),
                                .D = floats(args.D),
                                .delta_bias = floats(args.delta_bias),
                                .delta_softplus = args.delta_softplus,
                                .state = raw(state),
                                .state_type = state.defined() ? state.dtype() : DType::f32,
                                .E = args.A.size(0),
                                .N = static_cast<int>(N),
                                .batch = view_of(batch, args.u.device())};
  if (s.E == 0) return;
  if (batch.is_step()) {
    selective_scan_step(s, args.u.dtype());
  } else {
    selective_scan_forward(s, args.u.dtype());
  }
}

}  // namespace ssm::cuda
