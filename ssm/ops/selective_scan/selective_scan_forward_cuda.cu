// The scan over many tokens. What it costs is exp: N a channel and token, 16 a clock and multiprocessor, so
// everything else is arranged around keeping that unit fed.
//
// A block walks one chunk of a sequence's time for kWidth channels, kRows tokens (a tile) after another. Its
// warps have two trades, and a barrier a tile keeps them in step:
// - helpers bring u, delta, z, B and C of coming tiles into shared memory (cp.async), prepare the next tile
//   (softplus, delta u, B and C in f32, once for all states) and finish the last one (D u, silu(z));
// - scanners take the recurrence over the prepared tile. A thread keeps kStates states of two channels in
//   registers; kLanes neighbouring lanes share those channels and sum y among themselves.
//
// Where channels and sequences do not fill the card, time is split into chunks, their length a function of
// the shapes only. A first pass finds what each chunk adds to the state, from its end backwards,
//   last[e, n] = sum_t exp(A[e, n] R[t, e]) delta'[t, e] u[t, e] B[t, n],   R[t, e] = sum_{s > t} delta'[s,
//   e],
// and may stop where exp(A R) is below 2^-kForgotten for all channels of a block: what was there is
// forgotten. A second pass (one thread a channel and state) carries states over the chunks,
// h' = exp(A R) h + last, and the third is the whole scan of each chunk from its true first state.
#include <algorithm>
#include <cmath>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/selective_scan/selective_scan_tiles.cuh"

namespace ssm::cuda {
namespace {

using namespace selective;

// A scanner thread has states [lane * kStates, + kStates) of each kBlockStates of two channels. A lane's
// first channel is the second one's of its neighbour, so that in a sum over lanes each ends with its own
// first.
template <class T, Pass kPass, bool kMany>
struct Scanner {
  static constexpr bool kWhole = kPass == Pass::whole;
  const ForwardArgs& a;
  const Piece& piece;
  Tiles<T>& tiles;
  int lane, channel[2];
  int64_t slot;
  float* carry;
  float A[2][kStates], h[2][kStates];
  float R[2] = {0.0f, 0.0f};            // of the carry pass
  float slowest[2] = {-1e30f, -1e30f};  // largest A

  __device__ __forceinline__ Scanner(const ForwardArgs& args, const Piece& of, Tiles<T>& in)
      : a(args), piece(of), tiles(in), lane(threadIdx.x % kLanes) {
#pragma unroll
    for (int i = 0; i < 2; ++i) channel[i] = threadIdx.x / kLanes * 2 + (i ^ (lane & 1));
    slot = a.s.state ? a.s.batch.slots[piece.chunk.sequence] * a.s.N * a.s.E + piece.e0 : 0;
    carry = a.carry ? a.carry + piece.number * a.s.N * a.s.E + piece.e0 : nullptr;
  }

  template <class F>
  __device__ __forceinline__ void for_states(int n0, F&& f) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        const int n = n0 + lane * kStates + j;
        if (n < a.s.N && channel[i] < piece.width) f(i, j, n, n * a.s.E + channel[i]);
      }
    }
  }
  // `first`: of the piece, as the initial state says; otherwise what an earlier tile left.
  __device__ __forceinline__ void load_states(int n0, bool first) {
#pragma unroll
    for (int i = 0; i < 2 * kStates; ++i) A[i / kStates][i % kStates] = h[i / kStates][i % kStates] = 0.0f;
    for_states(n0, [&](int i, int j, int n, int64_t at) {
      A[i][j] = kLog2e * a.s.A[(piece.e0 + channel[i]) * a.s.A_channel_stride + n * a.s.A_state_stride];
      slowest[i] = fmaxf(slowest[i], A[i][j]);
      if (!first || (kWhole && a.split)) {
        h[i][j] = carry[at];
      } else if (kWhole && a.s.state) {
        h[i][j] = load_state(a.s.state, a.s.state_type, slot + at);
      }
    });
  }
  __device__ __forceinline__ void store_states(int n0, bool final) const {
    for_states(n0, [&](int i, int j, int, int64_t at) {
      if (!kWhole || (kMany && !final)) carry[at] = h[i][j];
      if (kWhole && final && piece.last && a.s.state)
        store_state(a.s.state, a.s.state_type, slot + at, h[i][j]);
    });
  }

  // B or C of a lane's states at a token.
  __device__ __forceinline__ void load_row(float (&to)[kStates], int which, int side, int64_t t, int row,
                                           int n0) const {
    if constexpr (!kMany) {
      load<kStates>(to, tiles.BC[side][row][lane][which]);
    } else {
      const int64_t stride = which ? a.s.C_stride : a.s.B_stride;
      const int n = n0 + lane * kStates;
      const T* from =
          static_cast<const T*>(which ? a.s.C : a.s.B) + min(t + row, piece.chunk.end - 1) * stride + n;
#pragma unroll
      for (int j = 0; j < kStates; ++j) to[j] = n + j < a.s.N ? to_f32(from[j]) : 0.0f;
    }
  }

  // h = exp(delta A) h + delta u B and the sums of C h, token after token.
  __device__ __forceinline__ void scan(int side, int64_t t, int n0) {
#pragma unroll 1
    for (int q = 0; q < kRows / 4; ++q) {
      float4 delta[2], delta_u[2];
      float part[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        delta[i] = tiles.delta[side][q][channel[i]], delta_u[i] = tiles.delta_u[side][q][channel[i]];
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float B[kStates], C[kStates];
        load_row(B, 0, side, t, q * 4 + k, n0);
        load_row(C, 1, side, t, q * 4 + k, n0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            const float decay = exp2_fast(element(delta[i], k) * A[i][j]);
            h[i][j] = fmaf(decay, h[i][j], element(delta_u[i], k) * B[j]);
            part[k][i] = j == 0 ? C[0] * h[i][0] : fmaf(C[j], h[i][j], part[k][i]);
          }
        }
      }
      // Sums over the lanes: each ends with its first channel, of every second token.
      constexpr unsigned kAll = 0xffffffffu;
      float own[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) own[k] = part[k][0] + __shfl_xor_sync(kAll, part[k][1], 1);
      const int odd = lane >> 1;
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
        const float keep = odd ? own[k + 1] : own[k], send = odd ? own[k] : own[k + 1];
        const float sum = keep + __shfl_xor_sync(kAll, send, 2);
        float& y = tiles.y[side][q * 4 + k + odd][channel[0]];
        y = kMany && n0 > 0 ? y + sum : sum;
      }
    }
  }

  // h += exp(A R) delta u B from the last token to the first. `after` is R before this tile.
  __device__ __forceinline__ void scan_back(int side, int64_t t, int n0, const float (&after)[2]) {
    R[0] = after[0], R[1] = after[1];
#pragma unroll 1
    for (int q = kRows / 4 - 1; q >= 0; --q) {
      float4 delta[2], delta_u[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        delta[i] = tiles.delta[side][q][channel[i]], delta_u[i] = tiles.delta_u[side][q][channel[i]];
      }
#pragma unroll
      for (int k = 3; k >= 0; --k) {
        float B[kStates];
        load_row(B, 0, side, t, q * 4 + k, n0);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            h[i][j] = fmaf(exp2_fast(R[i] * A[i][j]), element(delta_u[i], k) * B[j], h[i][j]);
          }
          R[i] += element(delta[i], k);
        }
      }
    }
  }

  __device__ __forceinline__ void scan_tile(int i) {
    const int side = i & 1;
    const int64_t t = piece.first_row(kWhole ? i : piece.tiles - 1 - i);
    const float after[2] = {R[0], R[1]};
    for (int n0 = 0; n0 < (kMany ? a.s.N : 1); n0 += kBlockStates) {
      if (kMany) load_states(n0, i == 0);
      if constexpr (kWhole) {
        scan(side, t, n0);
      } else {
        scan_back(side, t, n0, after);
      }
      if (kMany) store_states(n0, i + 1 == piece.tiles);
    }
  }

  // Whether what lies before the tokens seen has no weight any more.
  __device__ __forceinline__ bool forgotten() const {
    return a.s.delta_softplus && R[0] * slowest[0] < -kForgotten && R[1] * slowest[1] < -kForgotten;
  }
};

// kMany: more than kBlockStates states. Their h stands in `carry` and comes to registers once a tile.
template <class T, Pass kPass, bool kMany>
__global__ void __launch_bounds__(2 * kTrade, kBlocksAtOnce)
    selective_scan_forward_kernel(const __grid_constant__ ForwardArgs a) {
  constexpr bool kWhole = kPass == Pass::whole;
  extern __shared__ float4 shared[];
  Tiles<T>& tiles = *reinterpret_cast<Tiles<T>*>(shared);
  grid_dependency_wait();
  let_next_start();
  const Piece piece(a);
  if (piece.chunk.sequence < 0 || (!kWhole && piece.last)) return;  // nobody follows a last chunk
  if (threadIdx.x >= kTrade) {
    Helper<T, kPass, kMany> helper(a, piece, tiles);
    for (int i = 0; i < 3; ++i) helper.copy_in(i);
    wait_for_copies<1>();
    __syncthreads();
    helper.prepare(0);
    __syncthreads();
    for (int i = 0; i < piece.tiles; ++i) {
      helper.copy_in(i + 3);
      if (kWhole && i > 0) helper.finish(i - 1);
      helper.prepare(i + 1);
      wait_for_copies<1>();  // tile i + 2, which is prepared behind the barrier
      if (kWhole) {
        __syncthreads();
      } else if (__syncthreads_and(true)) {
        break;
      }
    }
    wait_for_copies<0>();
    if (kWhole) helper.finish(piece.tiles - 1);
  } else {
    Scanner<T, kPass, kMany> scanner(a, piece, tiles);
    if (!kMany) scanner.load_states(0, true);
    __syncthreads();
    __syncthreads();
    bool forgotten = false;
    for (int i = 0; i < piece.tiles && !forgotten; ++i) {
      scanner.scan_tile(i);
      if (kWhole) {
        __syncthreads();
      } else {
        forgotten = __syncthreads_and(scanner.forgotten());
      }
    }
    if (!kMany) scanner.store_states(0, true);
    if (!kWhole && scanner.lane < 2 && scanner.channel[0] < piece.width) {
      // A sum that no state outlives need not be complete.
      a.delta_sum[piece.number * a.s.E + piece.e0 + scanner.channel[0]] = forgotten ? 1e30f : scanner.R[0];
    }
  }
}

// Turns what each chunk adds to the state into its true first state.
__global__ void __launch_bounds__(kTrade) selective_scan_carry_kernel(const ForwardArgs a) {
  constexpr int kAhead = 8;
  const SelectiveScanOperands& s = a.s;
  const int64_t e = int64_t{blockIdx.x} * kTrade + threadIdx.x, n = blockIdx.y, b = blockIdx.z;
  const float A = e < s.E ? kLog2e * s.A[e * s.A_channel_stride + n * s.A_state_stride] : 0.0f;
  grid_dependency_wait();
  let_next_start();
  if (e >= s.E) return;
  const int64_t at = n * s.E + e, begin = s.batch.offsets[b], end = s.batch.offsets[b + 1];
  const int64_t first = begin / a.chunk_length + b,
                chunks = (end - begin + a.chunk_length - 1) / a.chunk_length;
  float h = s.state ? load_state(s.state, s.state_type, s.batch.slots[b] * s.N * s.E + at) : 0.0f;
  for (int64_t c0 = 0; c0 < chunks; c0 += kAhead) {
    float decay[kAhead], added[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const bool followed = c0 + j + 1 < chunks;
      decay[j] = followed ? exp2_fast(A * a.delta_sum[(first + c0 + j) * s.E + e]) : 0.0f;
      added[j] = followed ? a.carry[(first + c0 + j) * s.N * s.E + at] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (c0 + j < chunks) a.carry[(first + c0 + j) * s.N * s.E + at] = h;
      h = fmaf(decay[j], h, added[j]);
    }
  }
}

template <class T, Pass kPass, bool kMany>
void launch_pass(const ForwardArgs& a) {
  const auto kernel = selective_scan_forward_kernel<T, kPass, kMany>;
  static const bool allowed = allow_shared_bytes(kernel, sizeof(Tiles<T>));
  static_cast<void>(allowed);
  const int64_t blocks = chunk_numbers(a.s.batch, a.chunk_length) * a.channel_blocks;
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(2 * kTrade),
          .shared_bytes = sizeof(Tiles<T>),
          .overlaps_previous = true},
         kernel, a);
}

template <class T, bool kMany>
void launch_forward(ForwardArgs& a) {
  const SelectiveScanOperands& s = a.s;
  const int64_t numbers = chunk_numbers(s.batch, a.chunk_length);
  Tensor carry, delta_sum;
  if (a.split || kMany) {
    carry = Tensor::empty({numbers, s.N, s.E}, DType::f32, kCuda);
    a.carry = carry.data<float>();
  }
  if (a.split) {
    delta_sum = Tensor::empty({numbers, s.E}, DType::f32, kCuda);
    a.delta_sum = delta_sum.data<float>();
    launch_pass<T, Pass::carry, kMany>(a);
    const dim3 grid(static_cast<unsigned>((s.E + kTrade - 1) / kTrade), static_cast<unsigned>(s.N),
                    static_cast<unsigned>(s.batch.size));
    launch({.grid = grid, .block = dim3(kTrade), .overlaps_previous = true}, selective_scan_carry_kernel, a);
  }
  launch_pass<T, Pass::whole, kMany>(a);
}

// How long so many blocks take, in times of one that shares its multiprocessor.
double rounds_of(int64_t blocks) {
  constexpr double kAlone = 0.65;  // of one that does not
  double whole = 0;
  const double rest =
      std::modf(static_cast<double>(blocks) / (kBlocksAtOnce * properties().multiprocessors), &whole);
  return whole + (rest > 1.0 / kBlocksAtOnce ? 1 : rest > 0 ? kAlone : 0);
}

// Rows of a chunk, a function of the shapes only: the length whose blocks are done soonest. What is not a
// sequence's last chunk is walked twice.
int64_t chunk_length_of(const SelectiveScanOperands& s, int64_t longest, int64_t channel_blocks) {
  constexpr double kStart = 3 * kRows,
                   kAgain = 0.77;  // a block's start in rows' time, and a carry pass's rows
  int64_t best = longest;
  double best_cost = 1e30;
  for (int64_t cuts = 1; cuts == 1 || longest / cuts >= 8 * kRows; ++cuts) {
    const int64_t length = ((longest + cuts - 1) / cuts + kRows - 1) / kRows * kRows;
    const int64_t chunks = (s.batch.total + length - 1) / length;
    const double rounds = rounds_of(chunks * channel_blocks) +
                          (cuts > 1 ? kAgain * rounds_of((chunks - s.batch.size) * channel_blocks) : 0);
    const double cost = (static_cast<double>(length) + kStart) * rounds;
    if (cost < best_cost) best_cost = cost, best = length;
  }
  return best;
}

}  // namespace

void selective_scan_forward(const SelectiveScanOperands& s, DType type, int64_t longest) {
  const int64_t V = 16 / static_cast<int64_t>(size_of(type));
  const auto vectors_of = [&](const void* p, int64_t stride) {
    return is_aligned(p, 16) && is_multiple(stride, V);
  };
  ForwardArgs a{
      .s = s,
      .channel_blocks = (s.E + kWidth - 1) / kWidth,
      .chunk_length = 0,
      .split = false,
      .vectors = is_multiple(s.E, V) && vectors_of(s.u, s.u_stride) && vectors_of(s.delta, s.delta_stride) &&
                 vectors_of(s.z, s.z_stride) && vectors_of(s.y, s.y_stride),
      .BC_vectors = is_multiple(s.N, V) && vectors_of(s.B, s.B_stride) && vectors_of(s.C, s.C_stride),
      .carry = nullptr,
      .delta_sum = nullptr};
  dispatch(type, "selective_scan", [&](auto zero) {
    using T = decltype(zero);
    a.chunk_length = chunk_length_of(s, longest, a.channel_blocks);
    a.split = a.chunk_length < longest;
    if (!a.split) a.chunk_length = s.batch.total + 1;
    if (s.N > kBlockStates) {
      launch_forward<T, true>(a);
    } else {
      launch_forward<T, false>(a);
    }
  });
}

}  // namespace ssm::cuda
