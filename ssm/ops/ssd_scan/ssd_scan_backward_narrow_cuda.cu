// The backward of ssd_scan (ssd_scan_backward_cuda.cu has the formulas) with 16-bit factors:
//
//   factors    what dt and A give, a chunk and head each
//   walk       a block walks a sequence for one head, forwards with h or backwards with dh in f32 registers,
//              and leaves it, rounded, before and after each chunk
//   gradients  a block is a chunk and some heads of a group; four warps each make dx and dS^T, dC, and dB
//   blocks     dC and dB of several blocks, added
//
// What passes token k within a chunk is the sum over j < k <= i of W_ji = dM_ji M_ji: the sum over the tokens
// before k of (the row's sum of W beyond the diagonal - the column's).
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_roles.cuh"

namespace ssm::cuda {
namespace {

using namespace ssd_backward;

// A warp is a chunk and a head, a lane two of its tokens.
template <class T>
__global__ void __launch_bounds__(256)
    ssd_scan_backward_factors_kernel(const __grid_constant__ BackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y * 8 + threadIdx.x / 32),
            lane = static_cast<int>(threadIdx.x) % 32;
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (head >= a.H || chunk.sequence < 0) return;
  const float A = a.A[head] * kLog2e, bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  float dt[2] = {}, log[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t t = chunk.begin + lane * 2 + e;
    if (t < chunk.end) {
      dt[e] = to_f32(static_cast<const T*>(a.dt)[t * a.dt_stride + head]) + bias;
      if (a.dt_softplus) dt[e] = softplus(dt[e]);
      dt[e] = fminf(fmaxf(dt[e], a.dt_min), a.dt_max);
    }
    // 2^-160 is zero in f32; held there, steps that forget everything leave the sums of others exact.
    log[e] = fmaxf(dt[e] * A, -160.0f);
  }
  log[1] += log[0];
  float sum = log[1];
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const float before = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += before;
  }
  const float all = __shfl_sync(0xffffffffu, sum, 31);
  log[0] += sum - log[1], log[1] = sum;
  Factors& f = a.factors[number * a.H + head];
  const auto put = [&](float* to, float x, float y) { *reinterpret_cast<float2*>(to + lane * 2) = {x, y}; };
  put(f.log, log[0], log[1]);
  put(f.dt, dt[0], dt[1]);
  put(f.from_start, exp2_fast(log[0]), exp2_fast(log[1]));
  put(f.to_end, dt[0] * exp2_fast(all - log[0]), dt[1] * exp2_fast(all - log[1]));
}

template <int kN>
struct alignas(128) WalkStage {
  unsigned char channels[kPanel];         // x, or dy
  unsigned char states[kN / 64][kPanel];  // B, or C
  Factors factors;
};
template <int kN>
struct alignas(128) WalkShared {
  WalkStage<kN> stages[2];
  unsigned char written[kN * 128];
};

// A block is a head, a sequence and a direction; a warp has 16 states and all channels.
template <class T, int kN>
__global__ void __launch_bounds__(2 * kN)
    ssd_scan_backward_walk_kernel(const __grid_constant__ BackwardArgs a) {
  constexpr int kThreads = 2 * kN;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<WalkShared<kN>*>(memory);
  grid_dependency_wait();
  let_next_start();
  const bool back = blockIdx.z == 1;
  const int head = static_cast<int>(blockIdx.x), group = head / (a.H / a.G);
  const int64_t b = blockIdx.y, begin = a.batch.offsets[b], end = a.batch.offsets[b + 1];
  const int64_t first = begin / kTile + b;
  const int chunks = static_cast<int>((end - begin + kTile - 1) / kTile);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, g = lane / 4, q = lane % 4;
  const int n0 = thread / 32 * 16;
  const int64_t stride = back ? a.dy_stride : a.x_stride, BC_stride = back ? a.C_stride : a.B_stride;
  const T* const channels = static_cast<const T*>(back ? a.dy : a.x) + head * kTile;
  const T* const states = static_cast<const T*>(back ? a.C : a.B) + group * kN;
  const auto chunk_at = [&](int i) { return back ? chunks - 1 - i : i; };
  const auto fetch = [&](int i) {
    if (i < chunks) {
      WalkStage<kN>& to = shared.stages[i % 2];
      const int64_t t = begin + int64_t{chunk_at(i)} * kTile;
      const int rows = static_cast<int>(min(int64_t{kTile}, end - t));
      copy_panel(shared_address(to.channels), channels + t * stride, stride, rows, thread, kThreads);
      for (int n = 0; n < kN / 64; ++n)
        copy_panel(shared_address(to.states[n]), states + t * BC_stride + n * 64, BC_stride, rows, thread,
                   kThreads);
      const Factors* const from = a.factors + (first + chunk_at(i)) * a.H + head;
      if (thread < static_cast<int>(sizeof(Factors) / 16))
        copy_async(shared_address(&to.factors) + thread * 16, reinterpret_cast<const float4*>(from) + thread,
                   true);
    }
    commit_copies();
  };
  fetch(0);
  Strip h;
  clear(h);
  if (!back && a.initial) {
    const float* const from = a.initial + ((b * a.H + head) * kN + n0 + g) * kTile + 2 * q;
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) h[t][e] = from[e / 2 * 8 * kTile + t * 8 + e % 2];
  }
  T* const out = static_cast<T*>(back ? a.dh : a.h);
#pragma unroll 1
  for (int i = 0; i < chunks; ++i) {
    wait_for_copies<0>();
    __syncthreads();
    fetch(i + 1);
    T* const to = out + ((first + chunk_at(i)) * a.H + head) * (kN * kTile);
    write_strip<T>(h, shared.written, n0, [&](int n, int vector, const uint4& x) {
      *reinterpret_cast<uint4*>(to + n * kTile + vector * 8) = x;
    });
    const WalkStage<kN>& from = shared.stages[i % 2];
    const float* const factor = back ? from.factors.from_start : from.factors.to_end;
    const float decay = from.factors.from_start[kTile - 1];
#pragma unroll
    for (int j = 0; j < 32; ++j) h[j / 4][j % 4] *= decay;
    const uint32_t x = shared_address(from.channels), BC = shared_address(from.states);
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      uint32_t left[4];
      load_left_down(left, BC, n0, k);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 f = *reinterpret_cast<const float2*>(factor + k + e / 2 * 8 + 2 * q),
                     v = unpack<T>(left[e]);
        left[e] = pack<T>(v.x * f.x, v.y * f.y);
      }
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        uint32_t right[4];
        load_right_down(right, x, k, 16 * pair);
        multiply<T>(h, pair, left, right);
      }
    }
  }
}

template <class T, int kN>
__global__ void __launch_bounds__(kWidth, 1)
    ssd_scan_backward_gradients_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ __align__(128) unsigned char memory[];
  auto& shared = *reinterpret_cast<GradientShared<kN>*>(memory);
  grid_dependency_wait();
  let_next_start();
  const Place p(a);
  if (p.chunk.sequence < 0) {
    for (int i = threadIdx.x; i < p.heads * kTile; i += kWidth)
      a.D_sums[(p.number * a.H + p.first_head) * kTile + i] = 0.0f;
    for (int i = threadIdx.x; i < 2 * p.heads; i += kWidth)
      a.sums[(i % 2 * a.numbers + p.number) * a.H + p.first_head + i / 2] = 0.0f;
    return;
  }
  for (int n = 0; n < kN / 64; ++n) {
    const auto at = [&](const void* from, int64_t stride) {
      return static_cast<const T*>(from) + p.chunk.begin * stride + p.group * kN + n * 64;
    };
    copy_panel(shared_address(shared.B[n]), at(a.B, a.B_stride), a.B_stride, p.length, threadIdx.x, kWidth);
    copy_panel(shared_address(shared.C[n]), at(a.C, a.C_stride), a.C_stride, p.length, threadIdx.x, kWidth);
  }
  for (int i = 0; i < kStages - 1; ++i) fetch_head<T>(p, shared, i);
  const uint32_t B = shared_address(shared.B), C = shared_address(shared.C);
  // All threads pass the same barriers: one a head, one behind the last, one behind dS^T.
  const auto each_head = [&](auto&& f) {
#pragma unroll 1
    for (int i = 0; i < p.heads; ++i) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      fetch_head<T>(p, shared, i + kStages - 1);
      f(i, shared.stages[i % kStages], shared.sums[i % 2]);
    }
    __syncthreads();
  };
  const int role = static_cast<int>(threadIdx.x) / kRole;
  if (role == 0) {
    Strip dS;
    clear(dS);
    each_head([&](int i, const HeadStage<kN>& from, HeadSums& sums) {
      if (i == 0) keep_scores<T, kN>(p, B, C, shared.S);
      inputs_of_head<T, kN>(p, from, B, shared.S, dS, shared.written, p.first_head + i, sums);
    });
    write_strip<T>(dS, shared.written, p.row, [](int, int, const uint4&) {});
    __syncthreads();
    return;
  }
  Strip sum[kN / 64];
#pragma unroll
  for (Strip& s : sum) clear(s);
  const uint32_t scores = shared_address(shared.written);
  if (role == 1) {
    each_head([&](int i, const HeadStage<kN>& from, HeadSums& sums) {
      float dot[2] = {};
      states_of_head<T, kN>(p, shared_address(from.dy), shared_address(from.h), from.factors.from_start, sum,
                            [&](Strip& part, int half) {
#pragma unroll
                              for (int pair = 0; pair < 4; ++pair) {
                                uint32_t words[4];
                                load_left(words, C, p.row, 64 * half + 16 * pair);
                                with_words<T>(part, pair, words,
                                              [&](int r, int, float2 v, float& low, float& high) {
                                                dot[r] = fmaf(v.y, high, fmaf(v.x, low, dot[r]));
                                              });
                              }
                            });
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = sum_row(dot[r]);
        if (p.q == 0) sums.from_state[p.row + p.g + 8 * r] = x;
      }
      if (p.warp == 0 && i > 0) finish_head<T>(p, shared.sums[(i - 1) % 2], p.first_head + i - 1);
    });
    if (p.warp == 0) finish_head<T>(p, shared.sums[(p.heads - 1) % 2], p.first_head + p.heads - 1);
    __syncthreads();
    finish_states<T, kN, false>(p, scores, B, sum);
  } else {
    each_head([&](int, const HeadStage<kN>& from, HeadSums& sums) {
      states_of_head<T, kN>(p, shared_address(from.x), shared_address(from.dh), from.factors.to_end, sum,
                            [](Strip&, int) {});
      sums_of_head<T, kN>(p, from, sums);
    });
    __syncthreads();
    finish_states<T, kN, true>(p, scores, C, sum);
  }
}

// dC and dB from the sums of the blocks of heads, in their order.
template <class T>
__global__ void __launch_bounds__(256)
    ssd_scan_backward_blocks_kernel(const __grid_constant__ BackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int which = static_cast<int>(blockIdx.y);
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x, width = int64_t{a.G} * a.N;
  void* const out = which ? a.dB : a.dC;
  if (out == nullptr || i >= a.batch.total * width) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int block = 0; block < a.blocks; ++block)
    sum += a.BC[(which * a.blocks + block) * a.batch.total * width + i];
  static_cast<T*>(out)[i / width * (which ? a.dB_stride : a.dC_stride) + i % width] = from_f32<T>(sum);
}

template <class T, int kN>
void launch_all(const BackwardArgs& a) {
  static const bool allowed =
      allow_shared_bytes(ssd_scan_backward_walk_kernel<T, kN>, sizeof(WalkShared<kN>)) &&
      allow_shared_bytes(ssd_scan_backward_gradients_kernel<T, kN>, sizeof(GradientShared<kN>));
  static_cast<void>(allowed);
  const auto u = [](int64_t n) { return static_cast<unsigned>(n); };
  launch({.grid = dim3(u(a.numbers), u((a.H + 7) / 8)), .block = dim3(256), .overlaps_previous = true},
         ssd_scan_backward_factors_kernel<T>, a);
  launch({.grid = dim3(u(a.H), u(a.batch.size), 2),
          .block = dim3(2 * kN),
          .shared_bytes = sizeof(WalkShared<kN>),
          .overlaps_previous = true},
         ssd_scan_backward_walk_kernel<T, kN>, a);
  launch({.grid = dim3(u(a.numbers), u(int64_t{a.G} * a.blocks)),
          .block = dim3(kWidth),
          .shared_bytes = sizeof(GradientShared<kN>),
          .overlaps_previous = true},
         ssd_scan_backward_gradients_kernel<T, kN>, a);
  if (a.blocks == 1 || (!a.dB && !a.dC)) return;
  launch({.grid = dim3(u((a.batch.total * a.G * a.N + 255) / 256), 2),
          .block = dim3(256),
          .overlaps_previous = true},
         ssd_scan_backward_blocks_kernel<T>, a);
}

}  // namespace

namespace ssd_backward {

bool takes_narrow_backward(const BackwardArgs& a, DType dtype) {
  const auto rows = [](const void* p, int64_t stride) { return is_aligned(p) && is_multiple(stride, 8); };
  return dtype != DType::f32 && a.P == kTile && (a.N == 64 || a.N == 128) && a.dt_min >= 0 &&
         rows(a.x, a.x_stride) && rows(a.dy, a.dy_stride) && rows(a.B, a.B_stride) && rows(a.C, a.C_stride) &&
         rows(a.dx, a.dx_stride) &&
         sizeof(GradientShared<128>) <= static_cast<size_t>(properties().max_shared_bytes);
}

int64_t narrow_backward_blocks() { return properties().multiprocessors; }

void launch_narrow_backward(const BackwardArgs& a, DType dtype) {
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    a.N == 64 ? launch_all<T, 64>(a) : launch_all<T, 128>(a);
  };
  dtype == DType::bf16 ? with(__nv_bfloat16{}) : with(__half{});
}

}  // namespace ssd_backward
}  // namespace ssm::cuda
