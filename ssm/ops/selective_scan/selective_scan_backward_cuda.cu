// A block walks its chunk forwards, which leaves the state before every tile of kRows tokens in `starts`,
// then backwards, tile by tile: the states of kGroup tokens are computed again from the tile's first, kept as
// exp(delta' A) and exp(delta' A) h in registers, and gone through in reverse. A barrier a tile keeps
// scanners and helpers in step. What is summed over a tile's states goes from the lanes of a channel to
// shared memory; what is summed over channels (dB, dC) from the lanes of a warp, then the block's warps,
// then, in another kernel, the blocks in their order.
//
// Where channels and sequences do not fill the card, time is split. A pass before finds what each chunk adds
// to the state after it and to dh before it, both in one walk forwards,
//   h' = exp(delta' A) h + delta' u B,   P' = exp(delta' A) P,   q' = q + P' C dy',
// and a second one carries them over the chunks, h to the right and dh to the left.
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/selective_scan/selective_scan_backward_scanner.cuh"

namespace ssm::cuda {
namespace {

using namespace selective_backward;

// The block's sums over its channels of a tile's dC and dB, two neighbours a thread.
template <class T>
__device__ __forceinline__ void write_over_channels(const Block<T>& block, float* first, int tile, int side) {
  static_assert(2 * kThreads == kRows * 2 * kStates);
  if (tile * kRows + block.thread / kStates >= block.length) return;
  float sum[2] = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    float x[2];
    load<2>(x, &block.shared.over_channels[side][w][0][0] + 2 * block.thread);
    sum[0] += x[0], sum[1] += x[1];
  }
  store<2>(first + int64_t{tile} * (2 * kThreads), sum);
}

// Tiles in the order in which they are scanned: forwards but for the last, which is the first on the way
// back.
template <class T>
struct Walk {
  const Block<T>& block;
  __device__ __forceinline__ int steps() const { return 2 * block.tiles - 1; }
  __device__ __forceinline__ bool back(int k) const { return k >= block.tiles - 1; }
  __device__ __forceinline__ int tile(int k) const { return back(k) ? 2 * block.tiles - 2 - k : k; }
  static __device__ __forceinline__ int stage(int k) {
    return static_cast<int>(static_cast<unsigned>(k) % kStages);
  }
  __device__ __forceinline__ void copy_in(int k) const {
    if (k >= steps()) {
      commit_copies();
    } else if (back(k)) {
      block.template copy_in<true>(tile(k), stage(k));
    } else {
      block.template copy_in<false>(tile(k), stage(k));
    }
  }
  __device__ __forceinline__ void prepare(int k, const typename Block<T>::BC& BC) const {
    if (k >= steps()) return;
    if (back(k)) {
      block.template prepare<true>(tile(k), stage(k), k & 1, BC);
    } else {
      block.template prepare<false>(tile(k), stage(k), k & 1, BC);
    }
  }
  __device__ __forceinline__ typename Block<T>::BC fetch_BC(int k) const {
    return block.fetch_BC(k < steps() ? tile(k) : -1);
  }
};

// Copies, prepares the next tile and finishes the last one.
template <class T>
__device__ __forceinline__ void help(const BackwardArgs& a, const Block<T>& block) {
  const Walk<T> walk{block};
  for (int k = 0; k < 3; ++k) walk.copy_in(k);
  typename Block<T>::BC BC = walk.fetch_BC(0);
  wait_for_copies<2>();
  __syncthreads();
  walk.prepare(0, BC);
  BC = walk.fetch_BC(1);
  wait_for_copies<1>();
  __syncthreads();
  float dD[4] = {}, dbias[4] = {};
  float* const sums = a.sums +
                      (blockIdx.x % a.channel_blocks * a.s.batch.total + block.chunk.begin) * 2 * kStates +
                      2 * block.thread;
  const auto finish = [&](int k) {
    if (k < 0 || !walk.back(k)) return;
    block.finish(walk.tile(k), walk.stage(k), k & 1, dD, dbias);
    if (a.sums) write_over_channels(block, sums, walk.tile(k), k & 1);
  };
  const int steps = walk.steps();
#pragma unroll 1
  for (int k = 0; k < steps; ++k) {
    walk.copy_in(k + 3);
    finish(k - 1);  // before the next tile takes its place
    walk.prepare(k + 1, BC);
    BC = walk.fetch_BC(k + 2);
    wait_for_copies<1>();  // tile k + 2, which is prepared behind the barrier
    __syncthreads();
  }
  wait_for_copies<0>();
  finish(steps - 1);
  // A channel is finished by kRows threads.
  __syncthreads();
  if (a.parameters) {
    store<4>(&block.shared.over_states[0][0][block.row][block.c], dD);
    store<4>(&block.shared.over_states[0][1][block.row][block.c], dbias);
  }
  __syncthreads();
  const int which = block.thread / kChannels, c = block.thread % kChannels;
  static_assert(kThreads == 2 * kChannels);
  if (!a.parameters || c >= block.width) return;
  float sum = 0.0f;
  for (int r = 0; r < kRows; ++r) sum += block.shared.over_states[0][which][r][c];
  a.parameters[(block.number * kParameters + kStates + which) * a.s.E + block.e0 + c] = sum;
}

template <class T>
__device__ __forceinline__ void scan(const BackwardArgs& a, const Block<T>& block) {
  Scanner<T> scanner(a, block);
  scanner.load_first();
  __syncthreads();
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i + 1 < block.tiles; ++i) {
    scanner.store_start(i);
    scanner.advance(i & 1, 0, kRows);
    __syncthreads();
  }
#pragma unroll 1
  for (int i = block.tiles - 1; i >= 0; --i) {
    float before[2][kOwn] = {};
    if (i > 0) scanner.load_start(i - 1, before);
    scanner.tile_back(i & 1);  // 2 tiles - 2 - i has the same parity
#pragma unroll
    for (int j = 0; j < 2 * kOwn; ++j) scanner.h[j / kOwn][j % kOwn] = before[j / kOwn][j % kOwn];
    __syncthreads();
  }
  __syncthreads();
  __syncthreads();
  if (!a.parameters) return;
  float* const to = a.parameters + block.number * kParameters * a.s.E;
  scanner.for_states([&](int i, int j, int n, int64_t e) { to[n * a.s.E + e] = scanner.dA[i][j]; });
}

// On Hopper helpers leave a part of their registers to the scanners; elsewhere a block has a
// multiprocessor's.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int kBlocks = 2;
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 176;"); }
__device__ __forceinline__ void leave_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 80;"); }
#else
constexpr int kBlocks = 1;
__device__ __forceinline__ void take_registers() {}
__device__ __forceinline__ void leave_registers() {}
#endif

template <class T>
__global__ void __launch_bounds__(2 * kThreads, kBlocks)
    selective_scan_backward_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ float4 memory[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  grid_dependency_wait();
  let_next_start();
  const Block<T> block(a, shared);
  if (block.chunk.sequence < 0) {
    for (int i = threadIdx.x; a.parameters && i < kParameters * block.width; i += 2 * kThreads) {
      a.parameters[(block.number * kParameters + i / block.width) * a.s.E + block.e0 + i % block.width] =
          0.0f;
    }
    return;
  }
  if (threadIdx.x < kThreads) {
    take_registers();
    scan(a, block);
  } else {
    leave_registers();
    help(a, block);
  }
}

// What each chunk adds to the state after it and to dh before it.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    selective_scan_backward_chunk_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ float4 memory[];
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  grid_dependency_wait();
  let_next_start();
  const Block<T> block(a, shared);
  if (block.chunk.sequence < 0) return;
  Scanner<T> scanner(a, block);
  float P[2][kOwn], sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2 * kOwn; ++i) P[i / kOwn][i % kOwn] = 1.0f;
  block.template copy_in<true>(0, 0);
  typename Block<T>::BC BC = block.fetch_BC(0);
  constexpr int side = 0;
  for (int i = 0; i < block.tiles; ++i) {
    wait_for_copies<0>();
    __syncthreads();  // also for who still reads what is overwritten next
    block.template copy_in<true>(i + 1, (i + 1) & 1);
    block.template prepare<true>(i, i & 1, side, BC);
    BC = block.fetch_BC(i + 1);
    __syncthreads();
#pragma unroll 4
    for (int r = 0; r < kRows; ++r) {
      float steps[4], dy[2], B[kOwn], C[kOwn];
      block.load_steps(steps, side, r);
      block.load_dy(dy, side, r);
      block.load_BC(B, side, 0, r);
      block.load_BC(C, side, 1, r);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        sum[c] += steps[2 * c];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const float decay = exp2_fast(steps[2 * c] * scanner.A[c][j]);
          scanner.h[c][j] = fmaf(decay, scanner.h[c][j], steps[2 * c + 1] * B[j]);
          P[c][j] *= decay;
          scanner.dh[c][j] = fmaf(P[c][j], C[j] * dy[c], scanner.dh[c][j]);
        }
      }
    }
  }
  scanner.for_states([&](int i, int j, int n, int64_t e) {
    const int64_t row = block.number * a.s.E + e;
    a.chunk_h[row * kStates + n] = scanner.h[i][j];
    a.chunk_dh[row * kStates + n] = scanner.dh[i][j];
    if (n == 0) a.chunk_delta[row] = sum[i];
  });
}

// A thread is a channel and state of one sequence.
__global__ void __launch_bounds__(kThreads) selective_scan_backward_carry_kernel(const BackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, e = i / kStates, b = blockIdx.y;
  const int n = a.n0 + static_cast<int>(i % kStates);
  if (e >= a.s.E || n >= a.s.N) return;
  const float A = kLog2e * a.s.A[e * a.s.A_channel_stride + n * a.s.A_state_stride];
  const int64_t begin = a.s.batch.offsets[b], end = a.s.batch.offsets[b + 1];
  const int64_t first = begin / a.chunk_length + b,
                chunks = (end - begin + a.chunk_length - 1) / a.chunk_length;
  float h = a.initial ? a.initial[(b * a.s.N + n) * a.s.E + e] : 0.0f, dh = 0.0f;
  for (int64_t c = 0; c < chunks; ++c) {
    float& at = a.chunk_h[(first + c) * a.s.E * kStates + i];
    const float added = at;
    at = h;
    h = fmaf(exp2_fast(A * a.chunk_delta[(first + c) * a.s.E + e]), h, added);
  }
  for (int64_t c = chunks; c-- > 0;) {
    float& at = a.chunk_dh[(first + c) * a.s.E * kStates + i];
    const float added = at;
    at = dh;
    dh = fmaf(exp2_fast(A * a.chunk_delta[(first + c) * a.s.E + e]), dh, added);
  }
}

struct SumArgs {
  const float* from;
  int64_t count, E, T, channel_blocks;
  int n0, N;
  void *dB, *dC;
  int64_t dB_stride, dC_stride;
  float *dA, *dD, *dbias;
  int64_t dA_channel_stride, dA_state_stride, dD_stride, dbias_stride;
};

// dC and dB from the blocks' sums [channel blocks, T, 2 kStates].
template <class T>
__global__ void __launch_bounds__(kThreads) selective_scan_backward_rows_kernel(const SumArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, t = i / (2 * kStates);
  const bool is_B = i % (2 * kStates) >= kStates;
  const int n = a.n0 + static_cast<int>(i % kStates);
  void* const to = is_B ? a.dB : a.dC;
  if (t >= a.T || n >= a.N || to == nullptr) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t k = 0; k < a.channel_blocks; ++k) sum += a.from[k * a.T * 2 * kStates + i];
  static_cast<T*>(to)[t * (is_B ? a.dB_stride : a.dC_stride) + n] = from_f32<T>(sum);
}

// dA, dD and ddelta_bias from the chunks' [count, kParameters, E].
__global__ void __launch_bounds__(kThreads) selective_scan_backward_parameters_kernel(const SumArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int row = static_cast<int>(blockIdx.y), n = a.n0 + row;
  if (e >= a.E || (row < kStates && n >= a.N)) return;
  float* const to = row < kStates ? a.dA : row == kStates ? a.dD : a.dbias;
  if (to == nullptr || (row >= kStates && a.n0 + kStates < a.N)) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t k = 0; k < a.count; ++k) sum += a.from[(k * kParameters + row) * a.E + e];
  to[row < kStates ? e * a.dA_channel_stride + n * a.dA_state_stride
                   : e * (row == kStates ? a.dD_stride : a.dbias_stride)] += sum;
}

// Tokens of a chunk; more than there are: time is not split. Two blocks a multiprocessor run at a time.
int64_t chunk_length_of(const Batch& batch, int64_t longest, int64_t channel_blocks) {
  const int64_t slots = 2 * properties().multiprocessors, work = batch.total * channel_blocks;
  if (work >= longest * slots / 2) return batch.total + 1;
  const int64_t length = std::max<int64_t>((work + slots - 1) / slots, 8 * kRows);
  return (length + kRows - 1) / kRows * kRows;
}

template <class T>
void backward_states(BackwardArgs& a, const SumArgs& sums) {
  static const bool allowed = allow_shared_bytes(selective_scan_backward_kernel<T>, sizeof(Shared<T>)) &&
                              allow_shared_bytes(selective_scan_backward_chunk_kernel<T>, sizeof(Shared<T>));
  static_cast<void>(allowed);
  const int64_t numbers = chunk_numbers(a.s.batch, a.chunk_length), E = a.s.E;
  const auto blocks_of = [](int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); };
  const auto of_threads = [&](int threads) {
    return Launch{.grid = dim3(static_cast<unsigned>(numbers * a.channel_blocks)),
                  .block = dim3(static_cast<unsigned>(threads)),
                  .shared_bytes = sizeof(Shared<T>),
                  .overlaps_previous = true};
  };
  if (a.split) {
    launch(of_threads(kThreads), selective_scan_backward_chunk_kernel<T>, a);
    launch({.grid = dim3(blocks_of(E * kStates), static_cast<unsigned>(a.s.batch.size)),
            .block = dim3(kThreads),
            .overlaps_previous = true},
           selective_scan_backward_carry_kernel, a);
  }
  launch(of_threads(2 * kThreads), selective_scan_backward_kernel<T>, a);
  SumArgs of = sums;
  of.n0 = a.n0;
  if (a.sums) {
    of.from = a.sums;
    launch({.grid = dim3(blocks_of(a.s.batch.total * 2 * kStates)),
            .block = dim3(kThreads),
            .overlaps_previous = true},
           selective_scan_backward_rows_kernel<T>, of);
  }
  if (a.parameters) {
    of.from = a.parameters, of.count = numbers;
    launch({.grid = dim3(blocks_of(E), kParameters), .block = dim3(kThreads), .overlaps_previous = true},
           selective_scan_backward_parameters_kernel, of);
  }
}

}  // namespace

void selective_scan_backward(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                             const Tensor& dy, const SelectiveScanGrads& grads) {
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const auto stride = [](const Tensor& t, int dim = 0) { return t.defined() ? t.stride(dim) : 0; };
  const DType type = args.u.dtype();
  BackwardArgs a{};
  a.s = scan_operands(args, batch);
  const int64_t E = a.s.E, T = batch.total();
  if (E == 0) return;
  a.dy = dy.raw(), a.dy_stride = dy.stride(0);
  a.du = raw(grads.du), a.du_stride = stride(grads.du);
  a.ddelta = raw(grads.ddelta), a.ddelta_stride = stride(grads.ddelta);
  a.dz = raw(grads.dz), a.dz_stride = stride(grads.dz);
  a.initial = floats(initial);
  const auto aligned = [&](const void* p, int64_t rows, int64_t bytes) {
    return is_aligned(p, static_cast<size_t>(bytes)) &&
           is_multiple(rows, bytes / static_cast<int64_t>(size_of(type)));
  };
  const auto V = static_cast<int64_t>(size_of(type));
  a.vectors = is_multiple(E, 16 / V) && aligned(a.s.u, a.s.u_stride, 16) &&
              aligned(a.s.delta, a.s.delta_stride, 16) && aligned(a.s.z, a.s.z_stride, 16) &&
              aligned(a.dy, a.dy_stride, 16);
  a.out_vectors = is_multiple(E, 4) && aligned(a.du, a.du_stride, 4 * V) &&
                  aligned(a.ddelta, a.ddelta_stride, 4 * V) && aligned(a.dz, a.dz_stride, 4 * V);
  a.channel_blocks = (E + kChannels - 1) / kChannels;
  int64_t longest = 0;
  for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
  a.chunk_length = chunk_length_of(a.s.batch, longest, a.channel_blocks);
  a.split = a.chunk_length < longest;
  if (!a.split) a.chunk_length = T + 1;
  const int64_t numbers = chunk_numbers(a.s.batch, a.chunk_length);
  const auto workspace = [](const Shape& shape) { return Tensor::empty(shape, DType::f32, kCuda); };
  Tensor chunk_h, chunk_dh, chunk_delta, sums, parameters, over_states;
  const Tensor starts = workspace({chunk_numbers(a.s.batch, kRows), E, kStates});
  a.starts = floats(starts);
  if (a.split) {
    chunk_h = workspace({numbers, E, kStates}), chunk_dh = workspace({numbers, E, kStates});
    chunk_delta = workspace({numbers, E});
  }
  if (grads.dB.defined() || grads.dC.defined()) sums = workspace({a.channel_blocks, T, 2 * kStates});
  if (grads.dA.defined() || grads.dD.defined() || grads.ddelta_bias.defined())
    parameters = workspace({numbers, kParameters, E});
  if (a.s.N > kStates) over_states = workspace({3, T, E});
  a.chunk_h = floats(chunk_h), a.chunk_dh = floats(chunk_dh), a.chunk_delta = floats(chunk_delta);
  a.sums = floats(sums), a.parameters = floats(parameters), a.over_states = floats(over_states);
  const SumArgs to{.from = nullptr,
                   .count = 0,
                   .E = E,
                   .T = T,
                   .channel_blocks = a.channel_blocks,
                   .n0 = 0,
                   .N = a.s.N,
                   .dB = raw(grads.dB),
                   .dC = raw(grads.dC),
                   .dB_stride = stride(grads.dB),
                   .dC_stride = stride(grads.dC),
                   .dA = floats(grads.dA),
                   .dD = floats(grads.dD),
                   .dbias = floats(grads.ddelta_bias),
                   .dA_channel_stride = stride(grads.dA, 0),
                   .dA_state_stride = stride(grads.dA, 1),
                   .dD_stride = stride(grads.dD),
                   .dbias_stride = stride(grads.ddelta_bias)};
  dispatch(type, "selective_scan", [&](auto zero) {
    using X = decltype(zero);
    for (a.n0 = 0; a.n0 < a.s.N; a.n0 += kStates) backward_states<X>(a, to);
  });
}

}  // namespace ssm::cuda
