// Four kernels: the in-projection with the norm before and the convolution behind it, x_proj, one that
// multiplies by dt_proj and takes the step of the scan, and the out-projection, which adds to the residual.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_packed_cuda.h"
#include "ssm/ops/linear/linear_packed_rows.cuh"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/mamba1_step/inverse_rms.cuh"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kDepth = 5;      // steps of a dense dt_proj whose weights a warp holds
constexpr int kChannels = 16;  // of a block; a tile of a packed dt_proj
constexpr int kLanes = 8;      // threads of a channel
constexpr int kHeld = 2;       // states of a thread that are fetched ahead: N = 16
constexpr int kMaxState = 256;

struct ScanArgs {
  const void *uz, *dt_B_C, *dt_proj;  // [T, 2E], [T, R + 2N], [E, R] where that is dense
  PackedMatrix packed_dt_proj;
  const float *dt_bias, *A, *D;
  void* ssm_state;
  void* y;  // [T, E]
  const int32_t* slots;
  int64_t dt_proj_stride, A_stride_e, A_stride_n, y_stride;
  int E, R, N;
  float dt_B_C_eps;
};

// The product of a block's channels with dt, by kWarps of its warps with kRows rows of dt_proj each.
template <class X>
struct DenseDots {
  static constexpr int kWarps = 2, kRows = 8;
  Strip<X, sizeof(X) == 2 ? 8 : 1, 1, kDepth> sums;
  static constexpr int kSums = decltype(sums)::kSums;

  static __device__ __forceinline__ const X* row_of(const ScanArgs& a, int first) {
    return static_cast<const X*>(a.dt_proj) + (first + threadIdx.x % 32 / 4) * a.dt_proj_stride;
  }
  __device__ __forceinline__ void read_weights(const ScanArgs& a, int first) {
    sums.read_weights(row_of(a, first), a.dt_proj_stride, a.E - first, a.R);
  }
  __device__ __forceinline__ void multiply(const ScanArgs& a, int first, const X* dt, float* to) {
    sums.multiply_all(row_of(a, first), a.dt_proj_stride, a.E - first, dt, 0, 1, a.R);
    sums.give(to);
  }
};

template <class X, class F>
struct PackedDots {
  static constexpr int kWarps = 1, kRows = kChannels;
  PackedStrip<X, F, 1> sums;
  static constexpr int kSums = decltype(sums)::kSums;

  __device__ __forceinline__ void read_weights(const ScanArgs& a, int first) {
    sums.read_weights(a.packed_dt_proj, first / kRows, 0, a.packed_dt_proj.chunks);
  }
  __device__ __forceinline__ void multiply(const ScanArgs& a, int first, const X* dt, float* to) {
    sums.multiply_all(a.packed_dt_proj, first / kRows, 0, a.packed_dt_proj.chunks, dt, 0, 1, a.R);
    sums.give(to);
  }
};

// A block: kChannels channels of one sequence. The first warps multiply by dt_proj, warps 2 and 3 fetch dt's
// scale, B and C; then kLanes threads a channel take its states.
template <class X, class S, class Dots>
__global__ void __launch_bounds__(kChannels* kLanes) mamba1_step_scan_kernel(const ScanArgs a) {
  constexpr int kWarps = kChannels * kLanes / 32;
  __shared__ float dots[Dots::kWarps][Dots::kSums];
  __shared__ float B[kMaxState], C[kMaxState], dt_scale, sums_of[kWarps][kChannels];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, t = blockIdx.y;
  const int first = blockIdx.x * kChannels, c = thread % kChannels, e = first + c;
  const bool inside = e < a.E;
  Dots dots_of;
  const int own = first + warp * Dots::kRows;  // row of dt_proj
  if (warp < Dots::kWarps) dots_of.read_weights(a, own);
  const int n0 = thread / kChannels;
  const float* A = a.A + e * a.A_stride_e;
  float As[kHeld], hs[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int n = n0 + j * kLanes;
    As[j] = inside && n < a.N ? A[n * a.A_stride_n] : 0.0f;
  }
  const float dt_bias = inside ? a.dt_bias[e] : 0.0f, D = inside ? a.D[e] : 0.0f;
  let_next_start();
  grid_dependency_wait();
  const int64_t slot = a.slots[t];
  S* h = static_cast<S*>(a.ssm_state) + slot * a.N * a.E + e;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int n = n0 + j * kLanes;
    hs[j] = inside && n < a.N ? to_f32(h[int64_t{n} * a.E]) : 0.0f;
  }
  const X* uz = static_cast<const X*>(a.uz) + int64_t{t} * 2 * a.E;
  const float u = inside ? to_f32(uz[e]) : 0.0f;
  const float z = thread < kChannels && inside ? to_f32(uz[a.E + e]) : 0.0f;
  const X* row = static_cast<const X*>(a.dt_B_C) + int64_t{t} * (a.R + 2 * a.N);
  if (warp < Dots::kWarps) {
    dots_of.multiply(a, own, row, dots[warp]);
  } else if (warp >= 2) {
    const auto scale_of = [&](const X* part, int n) {
      return a.dt_B_C_eps > 0 ? inverse_rms(part, n, a.dt_B_C_eps) : 1.0f;
    };
    if (warp == 2) {
      const float scale = scale_of(row, a.R);
      if (lane == 0) dt_scale = scale;
    }
    const X* part = row + a.R + (warp - 2) * a.N;
    const float scale = scale_of(part, a.N);
    for (int n = lane; n < a.N; n += 32) (warp == 2 ? B : C)[n] = scale * to_f32(part[n]);
  }
  __syncthreads();
  float sum = 0;
  if (inside) {
    const float delta = softplus(dots[c / Dots::kRows][c % Dots::kRows] * dt_scale + dt_bias);
    auto step = [&](int n, float A_n, float h_n) {
      const float next = exp_fast(delta * A_n) * h_n + delta * B[n] * u;
      h[int64_t{n} * a.E] = from_f32<S>(next);
      sum += C[n] * next;
    };
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (n0 + j * kLanes < a.N) step(n0 + j * kLanes, As[j], hs[j]);
    }
    for (int n = n0 + kHeld * kLanes; n < a.N; n += kLanes) {
      step(n, A[n * a.A_stride_n], to_f32(h[int64_t{n} * a.E]));
    }
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, kChannels);
  if (lane < kChannels) sums_of[warp][lane] = sum;
  __syncthreads();
  if (thread < kChannels && inside) {
    float y = D * u;
#pragma unroll
    for (int p = 0; p < kWarps; ++p) y += sums_of[p][c];
    static_cast<X*>(a.y)[t * a.y_stride + e] = from_f32<X>(y * silu(z));
  }
}

// What dt_proj is packed as: 8 bits (load/quantization.h).
template <class F>
bool dispatch_dt_format(const CardFormat& format, F&& f) {
  return dispatch_common_format(format, [&](auto as) {
    if constexpr (decltype(as)::kBits == 8) f(as);
  });
}

bool has_dt_format(const Weight& dt_proj) {
  const auto* packed = std::get_if<QuantizedTensor>(&dt_proj);
  return !packed || card_format(packed->format).bits == 8;
}

void launch_scan(const Mamba1StepArgs& args, const int32_t* slots, const Tensor& uz, const Tensor& dt_B_C,
                 const Tensor& ssm_state, const Tensor& y) {
  const int64_t T = y.size(0), E = y.size(1);
  const auto* dense = std::get_if<Tensor>(&args.dt_proj);
  const auto* packed = std::get_if<QuantizedTensor>(&args.dt_proj);
  const ScanArgs a{.uz = uz.raw(),
                   .dt_B_C = dt_B_C.raw(),
                   .dt_proj = dense ? dense->raw() : nullptr,
                   .packed_dt_proj = packed ? matrix_of(*packed) : PackedMatrix{},
                   .dt_bias = args.dt_bias.data<float>(),
                   .A = args.A.data<float>(),
                   .D = args.D.data<float>(),
                   .ssm_state = ssm_state.raw(),
                   .y = y.raw(),
                   .slots = slots,
                   .dt_proj_stride = dense ? dense->stride(0) : 0,
                   .A_stride_e = args.A.stride(0),
                   .A_stride_n = args.A.stride(1),
                   .y_stride = y.stride(0),
                   .E = static_cast<int>(E),
                   .R = static_cast<int>(shape_of(args.dt_proj)[1]),
                   .N = static_cast<int>(args.A.size(1)),
                   .dt_B_C_eps = args.dt_B_C_eps};
  const Launch how{
      .grid = dim3(static_cast<unsigned>((E + kChannels - 1) / kChannels), static_cast<unsigned>(T)),
      .block = dim3(kChannels * kLanes),
      .overlaps_previous = true};
  dispatch(y.dtype(), "mamba1_step", [&](auto x_zero) {
    dispatch(ssm_state.dtype(), "mamba1_step", [&](auto s_zero) {
      using X = decltype(x_zero);
      using S = decltype(s_zero);
      if (!packed) return launch(how, mamba1_step_scan_kernel<X, S, DenseDots<X>>, a);
      dispatch_dt_format(card_format(packed->format), [&](auto as) {
        launch(how, mamba1_step_scan_kernel<X, S, PackedDots<X, decltype(as)>>, a);
      });
    });
  });
}

}  // namespace

bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch) {
  const int64_t rows_bytes = shape_of(args.x_proj)[0] * static_cast<int64_t>(size_of(args.compute));
  return batch.is_step() && batch.size() <= kStepRows && has_linear_step(batch.size(), args.in_proj) &&
         has_linear_step(batch.size(), args.x_proj) && has_linear_step(batch.size(), args.dt_proj) &&
         has_dt_format(args.dt_proj) && has_linear_step(batch.size(), args.out_proj) &&
         rows_bytes % 16 == 0 && args.conv_weight.size(1) == 4 && args.A.size(1) <= kMaxState;
}

void mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual) {
  const int64_t T = batch.size(), E = args.A.size(0), N = args.A.size(1), R = shape_of(args.dt_proj)[1];
  const Device device = residual.device();
  const DType dtype = args.compute;
  const int32_t* slots = view_of(batch, device).slots;
  const Tensor uz = Tensor::empty({T, 2 * E}, dtype, device);
  linear_conv_step(
      {.x = residual, .norm_weight = args.norm_weight, .gate = {}, .eps = args.norm_eps}, args.in_proj,
      args.in_bias,
      {.weight = args.conv_weight, .bias = args.conv_bias, .state = conv_state, .slots = slots, .first = 0},
      uz);
  const Tensor dt_B_C = Tensor::empty({T, R + 2 * N}, dtype, device);
  std::visit([&](const auto& w) { linear(uz.slice(1, 0, E), w, Tensor(), Tensor(), dtype, dt_B_C); },
             args.x_proj);
  const Tensor y = Tensor::empty({T, E}, dtype, device);
  launch_scan(args, slots, uz, dt_B_C, ssm_state, y);
  linear_add_step({.x = y, .norm_weight = {}, .gate = {}}, args.out_proj, args.out_bias, residual);
}

}  // namespace ssm::cuda
