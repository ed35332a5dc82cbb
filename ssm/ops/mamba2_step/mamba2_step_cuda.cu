// The in-projection with the norm before and the convolution behind it, the step of the recurrence, and the
// out-projection with the gated norm before it, which adds to the residual: for one row three kernels.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/types.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/mamba2_step/mamba2_step_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kValues = 16;  // of a head, a block
constexpr int kLanes = 16;   // threads of a value, that share its states
constexpr int kHeld = 8;     // states of a thread that are fetched together: N = 128
constexpr int kThreads = kValues * kLanes;

struct ScanArgs {
  const void* zxBCdt;  // x, B and C convolved
  const float *A, *dt_bias, *D;
  void* ssm_state;
  void* y;  // [T, E]
  const int32_t* slots;
  int64_t stride;  // of zxBCdt
  int E, H, N, P, G;
  bool D_has_hdim;
  float dt_min, dt_max;
};

template <class X, class S>
__global__ void __launch_bounds__(kThreads) mamba2_step_scan_kernel(const ScanArgs a) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float sums[kWarps][kValues];
  const int thread = threadIdx.x, t = blockIdx.y, p = thread % kValues, lane = thread / kValues;
  const int first = blockIdx.x * kValues, e = first + p, h = first / a.P, g = h / (a.H / a.G);
  const float A = a.A[h], dt_bias = a.dt_bias[h], D = a.D[a.D_has_hdim ? e : h];
  let_next_start();
  grid_dependency_wait();
  const int64_t slot = a.slots[t];
  const X* row = static_cast<const X*>(a.zxBCdt) + t * a.stride;
  const X *B = row + 2 * a.E + g * a.N, *C = B + a.G * a.N;
  const float x = to_f32(row[a.E + e]);
  float dt = to_f32(row[2 * (a.E + a.G * a.N) + h]);
  S* s = static_cast<S*>(a.ssm_state) + (slot * a.H + h) * a.N * a.P + e % a.P;
  float sum = 0, decay = 0;
  for (int n0 = lane; n0 < a.N; n0 += kHeld * kLanes) {
    float states[kHeld], Bs[kHeld], Cs[kHeld];
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int n = n0 + j * kLanes;
      const bool inside = n < a.N;
      states[j] = inside ? to_f32(s[int64_t{n} * a.P]) : 0.0f;
      Bs[j] = inside ? to_f32(B[n]) : 0.0f;
      Cs[j] = inside ? to_f32(C[n]) : 0.0f;
    }
    if (n0 == lane) {  // while the states are on their way
      dt = fminf(fmaxf(softplus(dt + dt_bias), a.dt_min), a.dt_max);
      decay = exp_fast(dt * A);
    }
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int n = n0 + j * kLanes;
      const float next = decay * states[j] + dt * Bs[j] * x;
      if (n < a.N) s[int64_t{n} * a.P] = from_f32<S>(next);
      sum += Cs[j] * next;
    }
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, kValues);
  if (thread % 32 < kValues) sums[thread / 32][p] = sum;
  __syncthreads();
  if (thread < kValues) {
    float y = D * x;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) y += sums[w][p];
    static_cast<X*>(a.y)[int64_t{t} * a.E + e] = from_f32<X>(y);
  }
}

void launch_scan(const Mamba2StepArgs& args, const int32_t* slots, const Tensor& zxBCdt,
                 const Tensor& ssm_state, const Tensor& y) {
  const int64_t T = y.size(0), E = y.size(1);
  const ScanArgs a{.zxBCdt = zxBCdt.raw(),
                   .A = args.A.data<float>(),
                   .dt_bias = args.dt_bias.data<float>(),
                   .D = args.D.data<float>(),
                   .ssm_state = ssm_state.raw(),
                   .y = y.raw(),
                   .slots = slots,
                   .stride = zxBCdt.stride(0),
                   .E = static_cast<int>(E),
                   .H = static_cast<int>(ssm_state.size(1)),
                   .N = static_cast<int>(ssm_state.size(2)),
                   .P = static_cast<int>(ssm_state.size(3)),
                   .G = static_cast<int>(args.groups),
                   .D_has_hdim = args.D.numel() == E,
                   .dt_min = args.dt_min,
                   .dt_max = args.dt_max};
  const Launch how{.grid = dim3(static_cast<unsigned>(E / kValues), static_cast<unsigned>(T)),
                   .block = dim3(kThreads),
                   .overlaps_previous = true};
  dispatch(y.dtype(), "mamba2_step", [&](auto x_zero) {
    dispatch(ssm_state.dtype(), "mamba2_step", [&](auto s_zero) {
      launch(how, mamba2_step_scan_kernel<decltype(x_zero), decltype(s_zero)>, a);
    });
  });
}

}  // namespace

bool has_mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state) {
  return batch.is_step() && has_linear_step(batch.size(), args.in_proj) && args.conv_weight.size(1) == 4 &&
         has_linear_step(batch.size(), args.out_proj) && ssm_state.size(3) % kValues == 0;
}

void mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual) {
  const int64_t T = batch.size(), E = args.gate_weight.size(0);
  const Device device = residual.device();
  const DType dtype = args.compute;
  const int32_t* slots = view_of(batch, device).slots;
  const Tensor zxBCdt = Tensor::empty({T, shape_of(args.in_proj)[0]}, dtype, device);
  linear_conv_step(
      {.x = residual, .norm_weight = args.norm_weight, .gate = {}, .eps = args.norm_eps}, args.in_proj,
      args.in_bias,
      {.weight = args.conv_weight, .bias = args.conv_bias, .state = conv_state, .slots = slots, .first = E},
      zxBCdt);
  const Tensor y = Tensor::empty({T, E}, dtype, device);
  launch_scan(args, slots, zxBCdt, ssm_state, y);
  linear_add_step({.x = y,
                   .norm_weight = args.gate_weight,
                   .gate = zxBCdt.slice(1, 0, E),
                   .groups = args.groups,
                   .eps = args.gate_eps},
                  args.out_proj, args.out_bias, residual);
}

}  // namespace ssm::cuda
