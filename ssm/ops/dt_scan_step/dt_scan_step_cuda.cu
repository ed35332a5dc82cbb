#include "ssm/ops/dt_scan_step/dt_scan_step_cuda.h"

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/mamba1_step/inverse_rms.cuh"

namespace ssm::cuda {
namespace {

constexpr int kQuadsOfSlab = 16;
constexpr int kSlab = 4 * kQuadsOfSlab;  // channels of a block
constexpr int kState = 16;               // N

// A block has kScanRows rows and kSlab channels, a thread four channels of a row and their states.
constexpr int kScanRows = 8;
constexpr int kScanThreads = kScanRows * kQuadsOfSlab;
constexpr int kScanWarps = kScanThreads / 32, kEights = kSlab / 8 / kScanWarps;
constexpr int kDepth = 5;  // steps of dt_proj whose weights a warp holds

struct ScanArgs {
  const void *u, *z, *dt_B_C, *dt_proj;  // [T, E] twice, [T, J], [E, R]
  const float *dt_bias, *A, *D;          // A [16, E]
  void* ssm_state;
  void* y;  // [T, E]
  const int32_t* slots;
  int64_t u_stride, z_stride, dt_proj_stride, A_stride_n, y_stride;
  int T, E, R, J;
  float dt_B_C_eps;
};

template <class S>
size_t scan_shared_bytes(int64_t J) {
  const size_t pad = 8;
  return sizeof(S) * 4 * kState * kScanThreads + sizeof(float) * kState * kSlab +
         sizeof(float) * kScanRows * kSlab + sizeof(uint16_t) * kScanRows * (static_cast<size_t>(J) + pad);
}

template <class X, class S>
__global__ void __launch_bounds__(kScanThreads, 5) dt_proj_scan_kernel(const ScanArgs a) {
  extern __shared__ __align__(128) unsigned char bytes[];
  __shared__ float scales[kScanRows][3];  // of dt, B and C
  using Held = Wide<S, 4>;
  Held* held = reinterpret_cast<Held*>(bytes);                        // [kState][kScanThreads]
  float* A = reinterpret_cast<float*>(held + kState * kScanThreads);  // [kState][kSlab]
  float* dots = A + kState * kSlab;                                   // [kScanWarps][kScanRows][8 kEights]
  X* rows = reinterpret_cast<X*>(dots + kScanRows * kSlab);           // [kScanRows][stride]
  const int stride = a.J + 8;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int row = thread / kQuadsOfSlab, quad = thread % kQuadsOfSlab;
  const int first = blockIdx.x * kSlab, e = first + 4 * quad, t0 = blockIdx.y * kScanRows, t = t0 + row;
  const bool inside = t < a.T;
  for (int i = thread; i < kState * kQuadsOfSlab; i += kScanThreads) {
    const int n = i / kQuadsOfSlab, c = i % kQuadsOfSlab * 4;
    copy_async(shared_address(A + n * kSlab + c), a.A + n * a.A_stride_n + first + c, true);
  }
  Strip<X, kScanRows, kEights, kDepth> product;
  const int own = first + warp * 8 * kEights;  // row of dt_proj
  const X* dt_proj = static_cast<const X*>(a.dt_proj) + (own + lane / 4) * a.dt_proj_stride;
  product.read_weights(dt_proj, a.dt_proj_stride, a.E - own, a.R);
  float bias[4], D[4];
  load<4>(bias, a.dt_bias + e);
  load<4>(D, a.D + e);
  // The states are there: the product ahead let nothing start before what it waits for had ended, and all
  // that was enqueued before that.
  S* h = nullptr;
  if (inside) h = static_cast<S*>(a.ssm_state) + int64_t{a.slots[t]} * kState * a.E + e;
#pragma unroll
  for (int n = 0; n < kState; ++n) {
    const uint32_t to = shared_address(held + n * kScanThreads + thread);
    const void* from = inside ? h + int64_t{n} * a.E : static_cast<const S*>(a.ssm_state);
    if constexpr (sizeof(S) == 4) {
      copy_async(to, from, inside);
    } else {
      copy_eight_async(to, from, inside);
    }
  }
  commit_copies();
  let_next_start();
  grid_dependency_wait();
  const int chunks = a.J / 8;
  for (int i = thread; i < kScanRows * chunks; i += kScanThreads) {
    const int r = i / chunks, c = i % chunks * 8;
    *reinterpret_cast<uint4*>(rows + r * stride + c) =
        t0 + r < a.T
            ? *reinterpret_cast<const uint4*>(static_cast<const X*>(a.dt_B_C) + int64_t{t0 + r} * a.J + c)
            : uint4{};
  }
  float u[4] = {}, z[4] = {};
  if (inside) {
    load<4>(u, static_cast<const X*>(a.u) + t * a.u_stride + e);
    load<4>(z, static_cast<const X*>(a.z) + t * a.z_stride + e);
  }
  __syncthreads();
  if (a.dt_B_C_eps > 0) {
    for (int i = warp; i < kScanRows * 3; i += kScanWarps) {
      const int r = i / 3, which = i % 3;
      const X* from = rows + r * stride + (which == 0 ? 0 : a.R + (which - 1) * kState);
      const float scale = inverse_rms(from, which == 0 ? a.R : kState, a.dt_B_C_eps);
      if (lane == 0) scales[r][which] = scale;
    }
  } else if (thread < kScanRows * 3) {
    scales[thread / 3][thread % 3] = 1.0f;
  }
  product.multiply_all(dt_proj, a.dt_proj_stride, a.E - own, rows, stride, kScanRows, a.R);
  product.give(dots + warp * kScanRows * 8 * kEights);
  wait_for_copies<0>();
  __syncthreads();
  if (!inside) return;
  float B[kState], C[kState];
  const X* B_row = rows + row * stride + a.R;
  widen<kState>(B, load_wide<kState>(B_row));
  widen<kState>(C, load_wide<kState>(B_row + kState));
  constexpr int kWidth = 8 * kEights;
  float delta[4], in[4], y[4];
  load<4>(delta, dots + (4 * quad / kWidth * kScanRows + row) * kWidth + 4 * quad % kWidth);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    delta[c] = softplus(delta[c] * scales[row][0] + bias[c]);
    in[c] = delta[c] * u[c] * scales[row][1];
    y[c] = 0;
  }
#pragma unroll
  for (int n = 0; n < kState; ++n) {
    float An[4], hn[4];
    load<4>(An, A + n * kSlab + 4 * quad);
    widen<4>(hn, held[n * kScanThreads + thread]);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      hn[c] = exp_fast(delta[c] * An[c]) * hn[c] + in[c] * B[n];
      y[c] += C[n] * hn[c];
    }
    store_wide<4>(h + int64_t{n} * a.E, hn);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) y[c] = (y[c] * scales[row][2] + D[c] * u[c]) * silu(z[c]);
  store_wide<4>(static_cast<X*>(a.y) + t * a.y_stride + e, y);
}

template <class X, class S>
void launch_scan(const Launch& how, const ScanArgs& a) {
  auto* const kernel = dt_proj_scan_kernel<X, S>;
  [[maybe_unused]] static const bool allowed = allow_shared_bytes(kernel, 64 << 10) && prefer_shared(kernel);
  Launch with = how;
  with.shared_bytes = scan_shared_bytes<S>(a.J);
  launch(with, kernel, a);
}

constexpr int64_t kMostColumns = 512;  // of dt, B and C

}  // namespace

bool has_dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state) {
  const Tensor &A = args.A, &u = args.u, &z = args.z, &dt_B_C = args.dt_B_C;
  if (!batch.is_step() || !ssm_state.defined() || u.dtype() == DType::f32 || is_packed(args.dt_proj))
    return false;
  const Tensor& dt_proj = std::get<Tensor>(args.dt_proj);
  const int64_t E = A.size(0), R = dt_proj.size(1);
  const auto in_quads = [](const Tensor& t) { return is_aligned(t.raw()); };
  return E % kSlab == 0 && E < (1 << 24) && A.size(1) == kState && R % 16 == 0 &&
         dt_B_C.size(1) <= kMostColumns && dt_B_C.stride(0) == dt_B_C.size(1) && A.stride(0) == 1 &&
         is_multiple(A.stride(1), 4) && in_packs(u) && in_packs(z) && in_packs(dt_B_C) && in_packs(dt_proj) &&
         in_quads(A) && in_quads(args.dt_bias) && in_quads(args.D) && in_quads(ssm_state);
}

void dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state,
                  const Tensor& y) {
  const Tensor& dt_proj = std::get<Tensor>(args.dt_proj);
  const int64_t T = batch.size(), E = y.size(1), R = dt_proj.size(1);
  const ScanArgs scan{.u = args.u.raw(),
                      .z = args.z.raw(),
                      .dt_B_C = args.dt_B_C.raw(),
                      .dt_proj = dt_proj.raw(),
                      .dt_bias = args.dt_bias.data<float>(),
                      .A = args.A.data<float>(),
                      .D = args.D.data<float>(),
                      .ssm_state = ssm_state.raw(),
                      .y = y.raw(),
                      .slots = view_of(batch, y.device()).slots,
                      .u_stride = args.u.stride(0),
                      .z_stride = args.z.stride(0),
                      .dt_proj_stride = dt_proj.stride(0),
                      .A_stride_n = args.A.stride(1),
                      .y_stride = y.stride(0),
                      .T = static_cast<int>(T),
                      .E = static_cast<int>(E),
                      .R = static_cast<int>(R),
                      .J = static_cast<int>(args.dt_B_C.size(1)),
                      .dt_B_C_eps = args.dt_B_C_eps};
  const Launch how{
      .grid = dim3(static_cast<unsigned>(E / kSlab), static_cast<unsigned>((T + kScanRows - 1) / kScanRows)),
      .block = dim3(kScanThreads),
      .overlaps_previous = true};
  dispatch(y.dtype(), "dt_scan_step", [&](auto x_zero) {
    using X = decltype(x_zero);
    if constexpr (sizeof(X) == 2) {
      dispatch(ssm_state.dtype(), "dt_scan_step",
               [&](auto s_zero) { launch_scan<X, decltype(s_zero)>(how, scan); });
    }
  });
}

}  // namespace ssm::cuda
