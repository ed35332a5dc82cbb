// The matrix form in chunks of kTile tokens (Dao & Gu 2024, section 6, differentiated). With S = C B^T of a
// group, E_ij = exp(s_i - s_j), M = S E dt (all for j <= i), h the state before a chunk and dh the gradient
// of the one after:
//
//   chunks   what each chunk adds to the state after it, and to dh before it
//
//   passing  carries both over the chunks, h to the right and dh to the left
//
//   inputs   dx = M^T dy + exp(s_L - s_j) dt_j B dh + D dy
//            dS = sum of dM E dt over a block's heads, dM = dy x^T
//
//   states   exp(s_i) dy h^T and exp(s_L - s_j) dt_j x dh^T, summed over a block's heads
//
//   groups   dC = the first + dS B, dB = the second + dS^T C
//
//   steps    ddt, dA and ddt_bias from what passes each token (r below)
//
// Where activations have 16 bits and sizes suit, ssd_scan_backward_narrow_cuda.cu does the same.
//
// r_k, the gradient of dt'_k A, is the sum of all that passes token k on its way from an earlier token to a
// later one: within the chunk, out of h, into the state after it, or through it. Each term has exp(dt'_k A)
// as a factor, so nothing cancels where the state is forgotten.
#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_narrow.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_backward_wide.cuh"

namespace ssm::cuda {
namespace {

using namespace ssd_backward;

// A block is a chunk, a head and a tile of its state.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ssd_scan_backward_chunks_kernel(const __grid_constant__ BackwardArgs a) {
  __shared__ Tile rows, columns;
  __shared__ Decays decays;
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y), n = static_cast<int>(blockIdx.z) / a.p_tiles,
            p = static_cast<int>(blockIdx.z) % a.p_tiles;
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (chunk.sequence < 0) return;
  decays.compute<T>(a, chunk, head);
  if (threadIdx.x == 0 && blockIdx.z == 0) a.whole[number * a.H + head] = decays.from_start[kTile - 1];
  const int N = rest(a.N, n), P = rest(a.P, p), L = length_of(chunk);
  const int64_t from_group = int64_t{group_of(a, head)} * a.N + n * kTile,
                from_head = int64_t{head} * a.P + p * kTile;
#pragma unroll 1
  for (int back = 0; back < 2; ++back) {
    const int64_t BC_stride = back ? a.C_stride : a.B_stride, stride = back ? a.dy_stride : a.x_stride;
    __syncthreads();
    load_tile<T>(rows, back ? a.C : a.B, chunk.begin * BC_stride + from_group, BC_stride, L, N,
                 back ? decays.from_start : decays.to_end);
    load_tile<T>(columns, back ? a.dy : a.x, chunk.begin * stride + from_head, stride, L, P);
    __syncthreads();
    Part part;
    part.zero();
    part.add_product<T>([&](int r, int k) { return rows[k][r]; },
                        [&](int k, int c) { return columns[k][c]; });
    T* const to = static_cast<T*>(back ? a.dh : a.h) + state_at(a, number, head, n, p);
    part.for_each([&](int r, int c, float x) {
      if (r < N && c < P) to[int64_t{r} * a.P + c] = from_f32<T>(x);
    });
  }
}

// A thread is an element of one sequence's state, or of its gradient.
template <class T>
__global__ void __launch_bounds__(256)
    ssd_scan_backward_passing_kernel(const __grid_constant__ BackwardArgs a) {
  constexpr int kAhead = 8;
  grid_dependency_wait();
  let_next_start();
  const bool back = blockIdx.z == 1;
  const int64_t size = int64_t{a.N} * a.P, all = a.H * size;
  const int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x, b = blockIdx.y, head = i / size;
  if (i >= all) return;
  const int64_t begin = a.batch.offsets[b], length = a.batch.offsets[b + 1] - begin;
  const int64_t first = begin / kTile + b, chunks = (length + kTile - 1) / kTile;
  T* const states = static_cast<T*>(back ? a.dh : a.h) + i;
  float state = !back && a.initial ? a.initial[b * all + i] : 0.0f;
  for (int64_t c0 = 0; c0 < chunks; c0 += kAhead) {
    T added[kAhead];
    float whole[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t c = first + (back ? chunks - 1 - c0 - j : c0 + j);
      if (c0 + j < chunks) added[j] = states[c * all], whole[j] = a.whole[c * a.H + head];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t c = first + (back ? chunks - 1 - c0 - j : c0 + j);
      if (c0 + j >= chunks) continue;
      states[c * all] = from_f32<T>(state);
      state = fmaf(whole[j], state, to_f32(added[j]));
    }
  }
}

// A block is a chunk, a group and a tile of N.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ssd_scan_backward_groups_kernel(const __grid_constant__ BackwardArgs a) {
  extern __shared__ float4 memory[];
  Tile* const tiles = reinterpret_cast<Tile*>(memory);
  Tile &dS = tiles[0], &B = tiles[1], &C = tiles[2];
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int g = static_cast<int>(blockIdx.y), n = static_cast<int>(blockIdx.z), N = rest(a.N, n);
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (chunk.sequence < 0) return;
  const int L = length_of(chunk);
  const int64_t column = int64_t{g} * a.N + n * kTile;
  load_tile<T>(B, a.B, chunk.begin * a.B_stride + column, a.B_stride, L, N);
  load_tile<T>(C, a.C, chunk.begin * a.C_stride + column, a.C_stride, L, N);
  constexpr int kPacks = kTile * kTile / 4 / kThreads;
  float sum[kPacks][4] = {};
  for (int block = 0; block < a.blocks; ++block) {
    const float* const from = a.scores + ((number * a.G + g) * a.blocks + block) * kTile * kTile;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float x[4];
      load<4>(x, from + (i * kThreads + threadIdx.x) * 4);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[i][e] += x[e];
    }
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = (i * kThreads + threadIdx.x) * 4;
    store<4>(&dS[at / kTile][at % kTile], sum[i]);
  }
  __syncthreads();
#pragma unroll 1
  for (int which = 0; which < 2; ++which) {
    if ((which ? a.dB : a.dC) == nullptr) continue;
    Part part;
    part.zero();
    if (which) {
      part.add_product<T>([&](int j, int k) { return dS[j][k]; }, [&](int k, int c) { return C[k][c]; });
    } else {
      part.add_product<T>([&](int i, int k) { return dS[k][i]; }, [&](int k, int c) { return B[k][c]; });
    }
    float* const to = sums_of(a, which, a.blocks) + chunk.begin * a.G * a.N + column;
    part.for_each([&](int r, int c, float x) {
      if (r < L && c < N) to[int64_t{r} * a.G * a.N + c] = x;
    });
  }
}

// dC and dB from the sums of the blocks of heads and of `groups`, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ssd_scan_backward_rows_kernel(const __grid_constant__ BackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int which = static_cast<int>(blockIdx.y);
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, width = int64_t{a.G} * a.N;
  void* const out = which ? a.dB : a.dC;
  if (out == nullptr || i >= a.batch.total * width) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int block = 0; block <= a.blocks; ++block) sum += sums_of(a, which, block)[i];
  static_cast<T*>(out)[i / width * (which ? a.dB_stride : a.dC_stride) + i % width] = from_f32<T>(sum);
}

// A warp is a chunk and a head, a lane two of its tokens.
template <class T>
__global__ void __launch_bounds__(kThreads)
    ssd_scan_backward_steps_kernel(const __grid_constant__ BackwardArgs a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t number = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y * (kThreads / 32) + threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (head >= a.H) return;
  const Chunk chunk = chunk_of(a.batch, number, kTile);
  if (chunk.sequence < 0) {
    if (lane == 0) a.sums[number * a.H + head] = a.sums[(a.numbers + number) * a.H + head] = 0.0f;
    return;
  }
  StepSums of{};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t t = chunk.begin + lane * 2 + e;
    if (t >= chunk.end) continue;
    of.within[e] = token(a, kWithin, t, head);
    of.direct[e] = token(a, kDirect, t, head);
    of.to_state[e] = token(a, kToState, t, head);
    for (int n = 0; n < a.n_tiles; ++n) of.from_state[e] += token(a, kFromState + n, t, head);
  }
  for (int n = 0; n < a.n_tiles; ++n) of.through += a.through[(number * a.n_tiles + n) * a.H + head];
  of.through *= a.whole[number * a.H + head];
  write_steps<T>(a, chunk, number, head, of);
}

struct ParameterArgs {
  const float *sums, *D_sums;  // [2, numbers, H], [numbers, H*P]
  int64_t numbers, H, P;
  bool D_by_channel;
  float *dA, *dbias, *dD;  // or null
  int64_t dA_stride, dbias_stride, dD_stride;
};

// A block is a head: dA, ddt_bias, and dD.
__global__ void __launch_bounds__(kThreads) ssd_scan_backward_parameters_kernel(const ParameterArgs a) {
  __shared__ float scratch[32], scratch_bias[32], scratch_D[32];
  grid_dependency_wait();
  let_next_start();
  const int64_t h = blockIdx.x;
  float dA = 0.0f, dbias = 0.0f, dD = 0.0f;
  for (int64_t i = threadIdx.x; i < a.numbers; i += kThreads) {
    dA += a.sums[i * a.H + h];
    dbias += a.sums[(a.numbers + i) * a.H + h];
  }
  for (int64_t p = threadIdx.x; a.dD && p < a.P; p += kThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t i = 0; i < a.numbers; ++i) sum += a.D_sums[(i * a.H + h) * a.P + p];
    if (a.D_by_channel) a.dD[(h * a.P + p) * a.dD_stride] += sum;
    dD += sum;
  }
  dA = block_sum(dA, scratch), dbias = block_sum(dbias, scratch_bias), dD = block_sum(dD, scratch_D);
  if (threadIdx.x != 0) return;
  if (a.dA) a.dA[h * a.dA_stride] += dA;
  if (a.dbias) a.dbias[h * a.dbias_stride] += dbias;
  if (a.dD && !a.D_by_channel) a.dD[h * a.dD_stride] += dD;
}

template <class T>
void launch_all(const BackwardArgs& a) {
  static const bool allowed = allow_shared_bytes(ssd_scan_backward_inputs_kernel<T>, sizeof(InputTiles)) &&
                              allow_shared_bytes(ssd_scan_backward_states_kernel<T>, sizeof(StateTiles)) &&
                              allow_shared_bytes(ssd_scan_backward_groups_kernel<T>, 3 * sizeof(Tile));
  static_cast<void>(allowed);
  static_assert(sizeof(InputTiles) <= 99 * 1024 && sizeof(StateTiles) <= 99 * 1024);
  const auto u = [](int64_t n) { return static_cast<unsigned>(n); };
  const auto how = [&](int64_t y, int64_t z, size_t shared) {
    return Launch{.grid = dim3(u(a.numbers), u(y), u(z)),
                  .block = dim3(kThreads),
                  .shared_bytes = shared,
                  .overlaps_previous = true};
  };
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  launch(how(a.H, a.n_tiles * a.p_tiles, 0), ssd_scan_backward_chunks_kernel<T>, a);
  launch({.grid = dim3(u((elements + 255) / 256), u(a.batch.size), 2),
          .block = dim3(256),
          .overlaps_previous = true},
         ssd_scan_backward_passing_kernel<T>, a);
  launch(how(a.G * a.blocks, 1, sizeof(InputTiles)), ssd_scan_backward_inputs_kernel<T>, a);
  launch(how(a.G * a.blocks, a.n_tiles, sizeof(StateTiles)), ssd_scan_backward_states_kernel<T>, a);
  if (a.dB || a.dC) {
    launch(how(a.G, a.n_tiles, 3 * sizeof(Tile)), ssd_scan_backward_groups_kernel<T>, a);
    const int64_t sums = a.batch.total * a.G * a.N;
    launch({.grid = dim3(u((sums + kThreads - 1) / kThreads), 2),
            .block = dim3(kThreads),
            .overlaps_previous = true},
           ssd_scan_backward_rows_kernel<T>, a);
  }
  launch(how((a.H + kThreads / 32 - 1) / (kThreads / 32), 1, 0), ssd_scan_backward_steps_kernel<T>, a);
}

}  // namespace

void ssd_scan_backward(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                       const Tensor& dy, const SsdScanGrads& grads, const Tensor& dlast) {
  SSM_CHECK(!grads.dinitial.defined() && !dlast.defined(),
            "ssd_scan: states have no gradients on a card yet");
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const int64_t H = args.A.size(0), P = args.x.size(1) / H, G = args.groups, N = args.B.size(1) / G,
                T = batch.total();
  const DType type = args.x.dtype();
  BackwardArgs a{};
  a.x = args.x.raw(), a.dt = args.dt.raw(), a.B = args.B.raw(), a.C = args.C.raw(), a.dy = dy.raw();
  a.A = floats(args.A), a.D = floats(args.D), a.dt_bias = floats(args.dt_bias), a.initial = floats(initial);
  a.dx = raw(grads.dx), a.ddt = raw(grads.ddt), a.dB = raw(grads.dB), a.dC = raw(grads.dC);
  a.x_stride = stride(args.x), a.dt_stride = stride(args.dt), a.B_stride = stride(args.B);
  a.C_stride = stride(args.C), a.dy_stride = stride(dy), a.dx_stride = stride(grads.dx);
  a.ddt_stride = stride(grads.ddt), a.dB_stride = stride(grads.dB), a.dC_stride = stride(grads.dC);
  a.H = static_cast<int>(H), a.P = static_cast<int>(P), a.G = static_cast<int>(G), a.N = static_cast<int>(N);
  a.n_tiles = (a.N + kTile - 1) / kTile, a.p_tiles = (a.P + kTile - 1) / kTile;
  a.D_by_channel = args.D.defined() && args.D.numel() != H, a.dt_softplus = args.dt_softplus;
  a.dt_min = args.dt_min, a.dt_max = args.dt_max;
  a.batch = view_of(batch, args.x.device());
  a.numbers = chunk_numbers(a.batch, kTile);
  const bool narrow = takes_narrow_backward(a, type);
  // As few blocks a group as fill the card: each writes sums of its own.
  const int64_t heads = H / G,
                slots = narrow ? narrow_backward_blocks() : 2 * int64_t{properties().multiprocessors};
  const int64_t wanted = std::clamp<int64_t>((slots + a.numbers * G - 1) / (a.numbers * G), 1, heads);
  a.block_heads = static_cast<int>((heads + wanted - 1) / wanted);
  a.blocks = static_cast<int>((heads + a.block_heads - 1) / a.block_heads);

  const auto workspace = [](const Shape& shape) { return Tensor::empty(shape, DType::f32, kCuda); };
  const Tensor h = Tensor::empty({a.numbers, H, N, P}, type, kCuda),
               dh = Tensor::empty({a.numbers, H, N, P}, type, kCuda);
  const Tensor D_sums = workspace({a.numbers, H * P}), sums = workspace({2, a.numbers, H});
  a.h = h.raw(), a.dh = dh.raw(), a.D_sums = floats(D_sums), a.sums = floats(sums);
  if (narrow) {
    const Tensor factors = workspace({a.numbers, H, static_cast<int64_t>(sizeof(Factors) / sizeof(float))}),
                 BC = workspace({2, a.blocks > 1 ? a.blocks : 0, T, G * N});
    a.factors = reinterpret_cast<Factors*>(factors.raw()), a.BC = floats(BC);
    launch_narrow_backward(a, type);
  } else {
    const Tensor whole = workspace({a.numbers, H}), tokens = workspace({3 + a.n_tiles, T, H});
    const Tensor through = workspace({a.numbers, a.n_tiles, H});
    const Tensor scores = workspace({a.numbers, G, a.blocks, kTile * kTile}),
                 BC = workspace({2, a.blocks + 1, T, G * N});
    a.whole = floats(whole), a.tokens = floats(tokens), a.through = floats(through);
    a.scores = floats(scores), a.BC = floats(BC);
    dispatch(type, "ssd_scan", [&](auto zero) { launch_all<decltype(zero)>(a); });
  }
  const ParameterArgs to{.sums = a.sums,
                         .D_sums = a.D_sums,
                         .numbers = a.numbers,
                         .H = H,
                         .P = P,
                         .D_by_channel = a.D_by_channel,
                         .dA = floats(grads.dA),
                         .dbias = floats(grads.ddt_bias),
                         .dD = floats(grads.dD),
                         .dA_stride = stride(grads.dA),
                         .dbias_stride = stride(grads.ddt_bias),
                         .dD_stride = stride(grads.dD)};
  launch({.grid = dim3(static_cast<unsigned>(H)), .block = dim3(kThreads), .overlaps_previous = true},
         ssd_scan_backward_parameters_kernel, to);
}

}  // namespace ssm::cuda
