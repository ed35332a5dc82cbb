// Two kernels. The first convolves and multiplies by x_proj: a cluster shares out the channels, so that few
// blocks compute a channel's convolution, and adds up its parts over distributed shared memory; it only reads
// the window. The second has one owner a channel: it convolves once more (four products), moves the window
// on, and takes the step of the scan.
#include "ssm/core/cuda.h"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/launch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/reduce.cuh"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kWidth = 4;        // of the convolution
constexpr int kMaxRows = 8;      // sequences
constexpr int kCluster = 8;      // blocks that share the channels
constexpr int kStrips = 2;       // of x_proj's rows, a block
constexpr int kParts = 4;        // of a block's channels: warps of a strip
constexpr int kMaxSlice = 1024;  // channels of a block
constexpr int kDepth = 5;
constexpr int kChannels = 16;  // of a block of the scan
constexpr int kLanes = 16;     // threads of a channel there
constexpr int kMaxState = 256;

struct StepArgs {
  const void *xz, *x_proj, *dt_proj;
  const float *conv_weight, *conv_bias, *dt_bias, *A, *D;
  float* conv_state;
  void* ssm_state;
  void* dt_B_C;  // [T, R + 2N], between the kernels
  void* y;       // [T, E]
  const int32_t* slots;
  int64_t xz_stride, x_proj_stride, dt_proj_stride, y_stride;
  int64_t weight_stride_e, weight_stride_k, A_stride_e, A_stride_n;
  int T, E, R, N;
  float norm_eps;
};

// The window of a channel and the filter over it.
struct Window {
  float inputs[kWidth], weights[kWidth], bias;
  __device__ __forceinline__ void read_filter(const StepArgs& a, int e) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      weights[k] = a.conv_weight[e * a.weight_stride_e + k * a.weight_stride_k];
    bias = a.conv_bias ? a.conv_bias[e] : 0.0f;
  }
  __device__ __forceinline__ void read_inputs(const float* state, int E, float newest) {
#pragma unroll
    for (int k = 0; k + 1 < kWidth; ++k) inputs[k] = state[int64_t{k} * E];
    inputs[kWidth - 1] = newest;
  }
  __device__ __forceinline__ float convolved() const {
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += weights[k] * inputs[k];
    return silu(sum);
  }
};

template <class X>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kStrips* kParts * 32)
    mamba1_step_project_kernel(const StepArgs a) {
  using Sums = Strip<X, kMaxRows, kDepth>;
  constexpr int kRowStride = kMaxSlice + 64 / sizeof(X);  // rows of u lie 64 bytes apart in the banks
  constexpr int kValues = kStrips * kMaxRows * kStripRows;
  __shared__ alignas(16) X u[kMaxRows * kRowStride];
  __shared__ float parts[kStrips][kParts][Sums::kSums];
  __shared__ float gathered[kCluster][kValues];  // of the cluster's first block
  cluster_arrive();
  const int thread = threadIdx.x, warp = thread / 32, strip = warp / kParts, part = warp % kParts;
  const int rank = blockIdx.x % kCluster, P = a.R + 2 * a.N;
  const int slice = (a.E + kCluster * kStep<X> - 1) / (kCluster * kStep<X>)*kStep<X>;
  const int begin = min(a.E, rank * slice), width = min(a.E, begin + slice) - begin;
  const int first_row = blockIdx.x / kCluster * kStrips * kStripRows, row = first_row + strip * kStripRows;
  const int own = row + thread % 32 / 4;
  const int part_length = (slice / kStep<X> + kParts - 1) / kParts * kStep<X>;
  const int from = part * part_length, K = min(width - from, part_length);
  const X* w = own < P ? static_cast<const X*>(a.x_proj) + own * a.x_proj_stride + begin + from : nullptr;
  Sums sums;
  sums.read_weights(w, K);
  let_next_start();
  grid_dependency_wait();
  for (int i = thread; i < a.T * width; i += blockDim.x) {
    const int t = i / width, c = i % width, e = begin + c;
    const float newest = to_f32(static_cast<const X*>(a.xz)[t * a.xz_stride + e]);
    Window window;
    window.read_inputs(a.conv_state + int64_t{a.slots[t]} * (kWidth - 1) * a.E + e, a.E, newest);
    window.read_filter(a, e);
    u[t * kRowStride + c] = from_f32<X>(window.convolved());
  }
  __syncthreads();
  sums.multiply_all(w, u + from, kRowStride, a.T, K);
  sums.give(parts[strip][part]);
  __syncthreads();
  cluster_wait();  // all blocks run
  for (int i = thread; i < kValues; i += blockDim.x) {
    const int s = i / (kMaxRows * kStripRows), j = i % (kMaxRows * kStripRows);
    float sum = 0;
#pragma unroll
    for (int p = 0; p < kParts; ++p) sum += parts[s][p][j];
    store_in_block(&gathered[rank][i], 0, sum);
  }
  cluster_arrive();
  cluster_wait();
  if (rank != 0) return;
  for (int i = thread; i < kValues; i += blockDim.x) {
    const int s = i / (kMaxRows * kStripRows), t = i / kStripRows % kMaxRows, n = i % kStripRows;
    const int at = first_row + s * kStripRows + n;
    if (t >= a.T || at >= P) continue;
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kCluster; ++r) sum += gathered[r][i];
    static_cast<X*>(a.dt_B_C)[int64_t{t} * P + at] = from_f32<X>(sum);
  }
}

// Values [0, n) of a row, divided by their root mean square where a.norm_eps > 0, by one warp.
template <class X>
__device__ __forceinline__ float inverse_rms(const StepArgs& a, const X* row, int n) {
  if (a.norm_eps <= 0) return 1.0f;
  float square = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) square += to_f32(row[i]) * to_f32(row[i]);
  return rsqrtf(warp_sum(square) / static_cast<float>(n) + a.norm_eps);
}

// A block: kChannels channels of one sequence. Warps 0 and 1 multiply by dt_proj, warp 2 convolves, warps 3
// to 5 fetch dt's scale, B and C; then kLanes threads a channel take its states.
template <class X, class S>
__global__ void __launch_bounds__(kChannels* kLanes) mamba1_step_scan_kernel(const StepArgs a) {
  constexpr int kWarps = kChannels * kLanes / 32;
  using Sums = Strip<X, sizeof(X) == 2 ? 8 : 1, kDepth>;
  __shared__ float dots[2][Sums::kSums];
  __shared__ float us[kChannels], B[kMaxState], C[kMaxState], dt_scale, sums_of[kWarps][kChannels];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, t = blockIdx.y;
  const int first = blockIdx.x * kChannels, c = thread % kChannels, e = first + c;
  const bool inside = e < a.E;
  Sums dots_of;
  const int own = first + warp * kStripRows + lane / 4;
  const X* w = warp < 2 && own < a.E ? static_cast<const X*>(a.dt_proj) + own * a.dt_proj_stride : nullptr;
  if (warp < 2) dots_of.read_weights(w, a.R);
  Window window;
  if (warp == 2 && inside) window.read_filter(a, e);
  const int n0 = thread / kChannels;
  const float* A = a.A + e * a.A_stride_e;
  const float A0 = inside && n0 < a.N ? A[n0 * a.A_stride_n] : 0.0f;
  const float dt_bias = inside ? a.dt_bias[e] : 0.0f, D = inside ? a.D[e] : 0.0f;
  let_next_start();
  grid_dependency_wait();
  const int64_t slot = a.slots[t];
  S* h = static_cast<S*>(a.ssm_state) + slot * a.N * a.E + e;
  const float h0 = inside && n0 < a.N ? to_f32(h[int64_t{n0} * a.E]) : 0.0f;
  const X* xz = static_cast<const X*>(a.xz) + t * a.xz_stride;
  const float z = thread < kChannels && inside ? to_f32(xz[a.E + e]) : 0.0f;
  const X* row = static_cast<const X*>(a.dt_B_C) + int64_t{t} * (a.R + 2 * a.N);
  if (warp < 2) {
    dots_of.multiply_all(w, row, 0, 1, a.R);
    dots_of.give(dots[warp]);
  } else if (warp == 2) {
    if (lane < kChannels && inside) {
      float* state = a.conv_state + slot * (kWidth - 1) * a.E + e;
      window.read_inputs(state, a.E, to_f32(xz[e]));
      us[c] = window.convolved();
#pragma unroll
      for (int k = 0; k + 1 < kWidth; ++k) state[int64_t{k} * a.E] = window.inputs[k + 1];
    }
  } else if (warp == 3) {
    const float scale = inverse_rms(a, row, a.R);
    if (lane == 0) dt_scale = scale;
  } else if (warp < 6) {
    const X* part = row + a.R + (warp - 4) * a.N;
    const float scale = inverse_rms(a, part, a.N);
    for (int n = lane; n < a.N; n += 32) (warp == 4 ? B : C)[n] = scale * to_f32(part[n]);
  }
  __syncthreads();
  float sum = 0;
  if (inside) {
    const float u = us[c], delta = softplus(dots[c / kStripRows][c % kStripRows] * dt_scale + dt_bias);
    for (int n = n0; n < a.N; n += kLanes) {
      S* at = h + int64_t{n} * a.E;
      const float decay = exp_fast(delta * (n == n0 ? A0 : A[n * a.A_stride_n]));
      const float next = decay * (n == n0 ? h0 : to_f32(*at)) + delta * B[n] * u;
      *at = from_f32<S>(next);
      sum += C[n] * next;
    }
  }
  sum += __shfl_xor_sync(0xffffffffu, sum, kChannels);
  if (lane < kChannels) sums_of[warp][lane] = sum;
  __syncthreads();
  if (thread < kChannels && inside) {
    float y = D * us[c];
#pragma unroll
    for (int p = 0; p < kWarps; ++p) y += sums_of[p][c];
    static_cast<X*>(a.y)[t * a.y_stride + e] = from_f32<X>(y * silu(z));
  }
}

bool in_packs(const Tensor& t) {
  const int64_t bytes = static_cast<int64_t>(size_of(t.dtype()));
  return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.stride(0) * bytes % 16 == 0 &&
         t.size(1) * bytes % 16 == 0;
}

}  // namespace

bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch) {
  const int64_t E = args.A.size(0), N = args.A.size(1);
  return properties().major >= 9 && batch.is_step() && batch.size() <= kMaxRows &&
         args.conv_weight.size(1) == kWidth && E <= int64_t{kCluster} * kMaxSlice && N <= kMaxState &&
         args.x_proj.dtype() == args.dt_proj.dtype() && in_packs(args.x_proj) && in_packs(args.dt_proj) &&
         args.x_proj.size(0) * static_cast<int64_t>(size_of(args.x_proj.dtype())) % 16 == 0;
}

void mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& y) {
  const int64_t T = batch.size(), E = args.A.size(0), N = args.A.size(1), R = args.dt_proj.size(1);
  const Tensor dt_B_C = Tensor::empty({T, R + 2 * N}, args.xz.dtype(), args.xz.device());
  const StepArgs a{.xz = args.xz.raw(),
                   .x_proj = args.x_proj.raw(),
                   .dt_proj = args.dt_proj.raw(),
                   .conv_weight = args.conv_weight.data<float>(),
                   .conv_bias = args.conv_bias.defined() ? args.conv_bias.data<float>() : nullptr,
                   .dt_bias = args.dt_bias.data<float>(),
                   .A = args.A.data<float>(),
                   .D = args.D.data<float>(),
                   .conv_state = conv_state.data<float>(),
                   .ssm_state = ssm_state.raw(),
                   .dt_B_C = dt_B_C.raw(),
                   .y = y.raw(),
                   .slots = view_of(batch, y.device()).slots,
                   .xz_stride = args.xz.stride(0),
                   .x_proj_stride = args.x_proj.stride(0),
                   .dt_proj_stride = args.dt_proj.stride(0),
                   .y_stride = y.stride(0),
                   .weight_stride_e = args.conv_weight.stride(0),
                   .weight_stride_k = args.conv_weight.stride(1),
                   .A_stride_e = args.A.stride(0),
                   .A_stride_n = args.A.stride(1),
                   .T = static_cast<int>(T),
                   .E = static_cast<int>(E),
                   .R = static_cast<int>(R),
                   .N = static_cast<int>(N),
                   .norm_eps = args.norm_eps};
  const int64_t groups = (R + 2 * N + kStrips * kStripRows - 1) / (kStrips * kStripRows);
  const Launch project{.grid = dim3(static_cast<unsigned>(groups * kCluster)),
                       .block = dim3(kStrips * kParts * 32),
                       .overlaps_previous = true};
  const Launch scan{
      .grid = dim3(static_cast<unsigned>((E + kChannels - 1) / kChannels), static_cast<unsigned>(T)),
      .block = dim3(kChannels * kLanes),
      .overlaps_previous = true};
  dispatch(args.xz.dtype(), "mamba1_step", [&](auto x_zero) {
    using X = decltype(x_zero);
    launch(project, mamba1_step_project_kernel<X>, a);
    dispatch(ssm_state.dtype(), "mamba1_step",
             [&](auto s_zero) { launch(scan, mamba1_step_scan_kernel<X, decltype(s_zero)>, a); });
  });
}

}  // namespace ssm::cuda
