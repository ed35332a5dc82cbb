// A step of more than 8 rows. The large products are `linear`'s; what stands between them is two kernels: the
// convolution with x_proj behind it, and dt_proj with the step of the scan behind it. The second one's blocks
// fetch their states while the first one runs.
#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/async_copy.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/mma.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/cuda/wgmma.cuh"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_rows.cuh"
#include "ssm/ops/mamba1_step/inverse_rms.cuh"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"
#include "ssm/ops/rms_norm/rms_norm_cuda.h"

namespace ssm::cuda {
namespace {

constexpr int kQuadsOfSlab = 16;
constexpr int kSlab = 4 * kQuadsOfSlab;  // channels of a block
constexpr int kState = 16;               // N

// The convolution and x_proj: clusters of kParts blocks, a block kTile rows and kSlab channels. A block's
// sums over its channels are added up within the cluster, each block doing so for kTile / kParts of the rows,
// and over the clusters by the one that comes last, in one order.
constexpr int kTile = 64, kParts = 8, kRowsOfPart = kTile / kParts;
constexpr int kThreads = 512, kColumnWarps = kThreads / 32 / (kTile / 16);
constexpr int kMostTiles = 512;  // of rows

struct ProjectionArgs {
  void* uz;                              // [T, 2E]; u becomes silu(conv(u))
  const void* x_proj;                    // [J, E]
  const float *conv_weight, *conv_bias;  // [4, E], [E] or null
  float* conv_state;                     // [S, 3, E]
  const int32_t* slots;
  void* dt_B_C;       // [T, J]
  float* sums;        // [clusters, tiles * kTile, kColumns]
  int32_t* counters;  // [tiles, kParts], zeros before and after
  int64_t x_proj_stride, conv_stride_k;
  int T, E, J;
};

template <int Tiles>  // of 8 columns, of a warp
struct ProjectionShared {
  static constexpr int kColumns = 8 * Tiles * kColumnWarps;  // J at most
  static constexpr int kStride = kColumns + 8;
  union {
    struct {
      alignas(128) unsigned char weights[kColumns * 128], u[kTile * 128];
    };
    float sums[kTile * kStride];
  };
};

// Adds to a counter what this block has written before; whoever sees the sum sees that too.
__device__ __forceinline__ int count(int32_t* counter) {
  int before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

template <class X, int Tiles>
__global__ void __launch_bounds__(kThreads, 2) conv_x_proj_kernel(const ProjectionArgs a) {
  using Shared = ProjectionShared<Tiles>;
  extern __shared__ __align__(128) unsigned char bytes[];
  __shared__ bool is_last;
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int k0 = blockIdx.x * kSlab, t0 = blockIdx.y * kTile;
  const bool inside = k0 < a.E;  // else it is there to make the cluster whole
  const uint32_t weights = shared_address(shared.weights), u_rows = shared_address(shared.u);
  for (int i = thread; i < Shared::kColumns * 8; i += kThreads) {
    const int j = i / 8, chunk = i % 8;
    const bool there = inside && j < a.J;
    const X* from = static_cast<const X*>(a.x_proj) + (there ? j * a.x_proj_stride + k0 + 8 * chunk : 0);
    copy_async(weights + panel_offset(j, chunk), from, there);
  }
  commit_copies();
  // A thread: four channels of some rows.
  constexpr int kOwnRows = kTile * kQuadsOfSlab / kThreads;
  const int quad = thread % kQuadsOfSlab, first_row = thread / kQuadsOfSlab, e = k0 + 4 * quad;
  const auto row_of = [&](int i) { return first_row + i * (kTile / kOwnRows); };
  const auto u_at = [&](int t) { return static_cast<X*>(a.uz) + int64_t{t} * 2 * a.E + e; };
  float filter[4][4], bias[4] = {}, window[kOwnRows][3][4];
  float* state[kOwnRows];
  Pack<X, 4> inputs[kOwnRows];
  if (inside) {
#pragma unroll
    for (int k = 0; k < 4; ++k) load<4>(filter[k], a.conv_weight + k * a.conv_stride_k + e);
    if (a.conv_bias) load<4>(bias, a.conv_bias + e);
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i)
      state[i] = a.conv_state + (t0 + row_of(i) < a.T ? int64_t{a.slots[t0 + row_of(i)]} * 3 * a.E + e : 0);
  }
  grid_dependency_wait();
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int t = t0 + row_of(i);
    if (!inside || t >= a.T) continue;
    inputs[i] = load_pack<4>(u_at(t));
#pragma unroll
    for (int k = 0; k < 3; ++k) load<4>(window[i][k], state[i] + k * a.E);
  }
  // Not before: the next kernel reads states that one before this may still write, and its many loads would
  // delay this one's.
  let_next_start();
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = row_of(i), t = t0 + row;
    uint2 packed{};
    if (inside && t < a.T) {
      float newest[4], u[4];
      widen<4>(newest, inputs[i]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        u[c] = silu(bias[c] + filter[0][c] * window[i][0][c] + filter[1][c] * window[i][1][c] +
                    filter[2][c] * window[i][2][c] + filter[3][c] * newest[c]);
      }
      store<4>(state[i], window[i][1]);
      store<4>(state[i] + a.E, window[i][2]);
      store<4>(state[i] + 2 * a.E, newest);
      packed = {pack<X>(u[0], u[1]), pack<X>(u[2], u[3])};
      *reinterpret_cast<uint2*>(u_at(t)) = packed;
    }
    *reinterpret_cast<uint2*>(shared.u + panel_offset(row, quad / 2) + quad % 2 * 8) = packed;
  }
  wait_for_copies<0>();
  __syncthreads();
  // Warps: kTile / 16 of 16 rows, times kColumnWarps of Tiles times 8 columns.
  const int m0 = warp % (kTile / 16) * 16, n0 = warp / (kTile / 16) * 8 * Tiles;
  float products[Tiles][4] = {};
  uint32_t rows[4][4];
#pragma unroll
  for (int s = 0; s < 4; ++s) ldmatrix(rows[s], u_rows + panel_offset(m0 + lane % 16, 2 * s + lane / 16));
#pragma unroll
  for (int i = 0; i < Tiles; ++i) {
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
      uint32_t columns[4];
      ldmatrix(columns, weights + panel_offset(n0 + 8 * i + lane % 8, 2 * s + lane / 8));
      mma<X>(products[i], rows[s], columns[0], columns[1]);
      mma<X>(products[i], rows[s + 1], columns[2], columns[3]);
    }
  }
  __syncthreads();  // the sums lie where the operands lay
#pragma unroll
  for (int i = 0; i < Tiles; ++i) {
    float* to = shared.sums + (m0 + lane / 4) * Shared::kStride + n0 + 8 * i + 2 * (lane % 4);
    *reinterpret_cast<float2*>(to) = {products[i][0], products[i][1]};
    *reinterpret_cast<float2*>(to + 8 * Shared::kStride) = {products[i][2], products[i][3]};
  }
  cluster_sync();
  const int part = static_cast<int>(cluster_rank());
  const int clusters = gridDim.x / kParts, cluster = blockIdx.x / kParts;
  constexpr int kQuads = Shared::kColumns / 4, kOwn = (kRowsOfPart * kQuads + kThreads - 1) / kThreads;
  const auto add = [](float4& to, const float4& x) { to.x += x.x, to.y += x.y, to.z += x.z, to.w += x.w; };
  const auto give = [&](int row, int column, const float4& sum) {
    const int t = t0 + row;
    if (t >= a.T || column >= a.J) return;
    *reinterpret_cast<uint2*>(static_cast<X*>(a.dt_B_C) + int64_t{t} * a.J + column) = {
        pack<X>(sum.x, sum.y), pack<X>(sum.z, sum.w)};
  };
  // f(row, column) for each four of this block's part that are this thread's.
  const auto for_own = [&](auto&& f) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int i = thread + j * kThreads;
      if (i < kRowsOfPart * kQuads) f(part * kRowsOfPart + i / kQuads, i % kQuads * 4);
    }
  };
  const auto sums_at = [&](int c, int row, int column) {
    const int64_t rows_of_all = int64_t{gridDim.y} * kTile;
    return reinterpret_cast<float4*>(a.sums + (c * rows_of_all + t0 + row) * Shared::kColumns + column);
  };
  for_own([&](int row, int column) {
    float4 sum{};
#pragma unroll
    for (unsigned r = 0; r < kParts; ++r) {
      add(sum, *reinterpret_cast<const float4*>(in_block(shared.sums + row * Shared::kStride + column, r)));
    }
    if (clusters == 1) {
      give(row, column, sum);
    } else {
      *sums_at(cluster, row, column) = sum;
    }
  });
  if (clusters > 1) {
    __syncthreads();
    if (thread == 0) {
      int32_t* counter = a.counters + blockIdx.y * kParts + part;
      is_last = count(counter) == clusters - 1;
      if (is_last) *counter = 0;
    }
    __syncthreads();
    if (is_last) {
      for_own([&](int row, int column) {
        float4 sum{};
#pragma unroll 10
        for (int c = 0; c < clusters; ++c) add(sum, __ldcg(sums_at(c, row, column)));
        give(row, column, sum);
      });
    }
  }
  cluster_sync();  // nobody reads this block's sums any more
}

// dt_proj and the scan: a block kScanRows rows and kSlab channels, a thread four channels of a row and their
// states.
constexpr int kScanRows = 8;
constexpr int kScanThreads = kScanRows * kQuadsOfSlab;
constexpr int kScanWarps = kScanThreads / 32, kEights = kSlab / 8 / kScanWarps;
constexpr int kDepth = 5;  // steps of dt_proj whose weights a warp holds

struct BatchScanArgs {
  const void *uz, *dt_B_C, *dt_proj;  // [T, 2E], [T, J], [E, R]
  const float *dt_bias, *A, *D;       // A [16, E]
  void* ssm_state;
  void* y;  // [T, E]
  const int32_t* slots;
  int64_t dt_proj_stride, A_stride_n, y_stride;
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
__global__ void __launch_bounds__(kScanThreads, 5) dt_proj_scan_kernel(const BatchScanArgs a) {
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
  // The kernel ahead let this one start when all before it had ended: the states are there.
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
    const X* uz = static_cast<const X*>(a.uz) + int64_t{t} * 2 * a.E + e;
    load<4>(u, uz);
    load<4>(z, uz + a.E);
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

int32_t* counters() {
  static const auto made = [] {
    auto block = allocate(sizeof(int32_t) * kMostTiles * kParts);
    zero(block.get(), sizeof(int32_t) * kMostTiles * kParts);
    return block;
  }();
  return reinterpret_cast<int32_t*>(made.get());
}

template <class X, int Tiles>
void launch_projection(const Launch& how, const ProjectionArgs& a) {
  auto* const kernel = conv_x_proj_kernel<X, Tiles>;
  constexpr size_t kBytes = sizeof(ProjectionShared<Tiles>);
  [[maybe_unused]] static const bool allowed = allow_shared_bytes(kernel, kBytes) && prefer_shared(kernel);
  Launch with = how;
  with.shared_bytes = kBytes;
  launch(with, kernel, a);
}

template <class X, class S>
void launch_scan(const Launch& how, const BatchScanArgs& a) {
  auto* const kernel = dt_proj_scan_kernel<X, S>;
  [[maybe_unused]] static const bool allowed = allow_shared_bytes(kernel, 64 << 10) && prefer_shared(kernel);
  Launch with = how;
  with.shared_bytes = scan_shared_bytes<S>(a.J);
  launch(with, kernel, a);
}

template <class F>
void dispatch_compute(DType dtype, F&& f) {
  dispatch(dtype, "mamba1_step", [&](auto zero) {
    if constexpr (sizeof(zero) == 2) f(zero);
  });
}

constexpr int kColumnsOfTiles[] = {96, 192, 288};  // that 3, 6 and 9 tiles a warp make

}  // namespace

bool has_mamba1_batch_step(const Mamba1StepArgs& args, const SequenceBatch& batch) {
  for (const Weight* w : {&args.in_proj, &args.x_proj, &args.dt_proj, &args.out_proj}) {
    if (is_packed(*w) || !in_packs(std::get<Tensor>(*w))) return false;
  }
  const int64_t E = args.A.size(0), R = shape_of(args.dt_proj)[1], J = shape_of(args.x_proj)[0];
  const auto in_quads = [](const Tensor& t) { return !t.defined() || is_aligned(t.raw()); };
  return batch.is_step() && args.compute != DType::f32 && largest_cluster() == kParts &&
         batch.size() <= kMostTiles * kTile && E % kSlab == 0 && E < (1 << 24) && args.A.size(1) == kState &&
         R % 16 == 0 && J <= kColumnsOfTiles[2] && args.A.stride(0) == 1 &&
         is_multiple(args.A.stride(1), 4) && args.conv_weight.size(1) == 4 &&
         args.conv_weight.stride(0) == 1 && is_multiple(args.conv_weight.stride(1), 4) && in_quads(args.A) &&
         in_quads(args.conv_weight) && in_quads(args.conv_bias) && in_quads(args.dt_bias) && in_quads(args.D);
}

void mamba1_batch_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                       const Tensor& ssm_state, const Tensor& residual) {
  const int64_t T = batch.size(), E = args.A.size(0), R = shape_of(args.dt_proj)[1], J = R + 2 * kState;
  const Device device = residual.device();
  const DType dtype = args.compute;
  const auto dense = [](const Weight& w) -> const Tensor& { return std::get<Tensor>(w); };
  const int32_t* slots = view_of(batch, device).slots;
  const Tensor x = Tensor::empty({T, residual.size(1)}, dtype, device);
  rms_norm(residual, args.norm_weight, args.norm_eps, x);
  const Tensor uz = Tensor::empty({T, 2 * E}, dtype, device);
  cuda::linear(x, dense(args.in_proj), args.in_bias, Tensor(), dtype, uz);
  const Tensor dt_B_C = Tensor::empty({T, J}, dtype, device);
  const int64_t tiles = (T + kTile - 1) / kTile, clusters = (E / kSlab + kParts - 1) / kParts;
  const int tiles_of_columns = J <= kColumnsOfTiles[0] ? 3 : J <= kColumnsOfTiles[1] ? 6 : 9;
  const Tensor sums =
      clusters > 1
          ? Tensor::empty({clusters, tiles * kTile, 8 * kColumnWarps * tiles_of_columns}, DType::f32, device)
          : Tensor{};
  const ProjectionArgs projection{
      .uz = uz.raw(),
      .x_proj = dense(args.x_proj).raw(),
      .conv_weight = args.conv_weight.data<float>(),
      .conv_bias = args.conv_bias.defined() ? args.conv_bias.data<float>() : nullptr,
      .conv_state = conv_state.data<float>(),
      .slots = slots,
      .dt_B_C = dt_B_C.raw(),
      .sums = sums.defined() ? sums.data<float>() : nullptr,
      .counters = counters(),
      .x_proj_stride = dense(args.x_proj).stride(0),
      .conv_stride_k = args.conv_weight.stride(1),
      .T = static_cast<int>(T),
      .E = static_cast<int>(E),
      .J = static_cast<int>(J)};
  const Launch project{.grid = dim3(static_cast<unsigned>(clusters * kParts), static_cast<unsigned>(tiles)),
                       .block = dim3(kThreads),
                       .overlaps_previous = true,
                       .cluster = kParts};
  const Tensor y = Tensor::empty({T, E}, dtype, device);
  const BatchScanArgs scan{.uz = uz.raw(),
                           .dt_B_C = dt_B_C.raw(),
                           .dt_proj = dense(args.dt_proj).raw(),
                           .dt_bias = args.dt_bias.data<float>(),
                           .A = args.A.data<float>(),
                           .D = args.D.data<float>(),
                           .ssm_state = ssm_state.raw(),
                           .y = y.raw(),
                           .slots = slots,
                           .dt_proj_stride = dense(args.dt_proj).stride(0),
                           .A_stride_n = args.A.stride(1),
                           .y_stride = y.stride(0),
                           .T = static_cast<int>(T),
                           .E = static_cast<int>(E),
                           .R = static_cast<int>(R),
                           .J = static_cast<int>(J),
                           .dt_B_C_eps = args.dt_B_C_eps};
  const Launch step{
      .grid = dim3(static_cast<unsigned>(E / kSlab), static_cast<unsigned>((T + kScanRows - 1) / kScanRows)),
      .block = dim3(kScanThreads),
      .overlaps_previous = true};
  dispatch_compute(dtype, [&](auto x_zero) {
    using X = decltype(x_zero);
    if (tiles_of_columns == 3) launch_projection<X, 3>(project, projection);
    if (tiles_of_columns == 6) launch_projection<X, 6>(project, projection);
    if (tiles_of_columns == 9) launch_projection<X, 9>(project, projection);
    dispatch(ssm_state.dtype(), "mamba1_step",
             [&](auto s_zero) { launch_scan<X, decltype(s_zero)>(step, scan); });
  });
  cuda::linear_add(y, args.out_proj, args.out_bias, residual);
}

}  // namespace ssm::cuda
