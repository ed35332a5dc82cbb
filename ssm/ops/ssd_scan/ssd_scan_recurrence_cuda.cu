// The recurrence as it stands, token after token, in f32 on the plain units: activations in f32, for which
// the tensor cores are not exact enough, and state sizes that their tiles do not take. The decay of a step is
// applied as h + h expm1(dt A): rounding is then relative to what a step forgets, and does not add up over a
// long memory.
#include <algorithm>

#include "ssm/ops/cuda/mma.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kTokens = 16;    // staged in shared memory at a time
constexpr int kChannels = 64;  // of a head that a block takes
constexpr int kLanes = 16;     // along N
constexpr int kThreads = kLanes * kChannels / 4;

// Kept for each staged token: dt', expm1(dt' A) where it is above -1/2, else exp(dt' A), and which of them.
struct Step {
  float dt, decay;
  int near_one, unused;
};

// h = decay h + u B for R rows of N and 4 channels.
template <int R>
__device__ __forceinline__ void advance(float (&h)[R][4], const Step& step, const float (&x)[4],
                                        const float (&b)[R]) {
  float u[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) u[p] = step.dt * x[p];
  if (step.near_one) {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int p = 0; p < 4; ++p) h[i][p] = fmaf(u[p], b[i], fmaf(h[i][p], step.decay, h[i][p]));
  } else {
#pragma unroll
    for (int i = 0; i < R; ++i)
#pragma unroll
      for (int p = 0; p < 4; ++p) h[i][p] = fmaf(u[p], b[i], h[i][p] * step.decay);
  }
}

// The R values of a staged row that a lane keeps: runs of four, or of R if that is less.
template <int R>
__device__ __forceinline__ void read_row(const float* row, int lane, float (&to)[R]) {
  constexpr int kRun = R < 4 ? R : 4;
#pragma unroll
  for (int i = 0; i < R; i += kRun) {
    float run[kRun];
    load<kRun>(run, row + i * kLanes + lane * kRun);
#pragma unroll
    for (int j = 0; j < kRun; ++j) to[i + j] = run[j];
  }
}
template <int R>
__device__ __forceinline__ int index_of(int i, int lane) {
  constexpr int kRun = R < 4 ? R : 4;
  return i / kRun * kRun * kLanes + lane * kRun + i % kRun;
}

// Sums v[p] over the 16 lanes along N; lanes 4 p of the half warp then have the sum of v[p'] (see the
// return).
__device__ __forceinline__ float sum_over_lanes(const float (&v)[4], int lane) {
  const bool upper = lane & 8, odd = lane & 4;
  const float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(0xffffffffu, upper ? v[0] : v[2], 8);
  const float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(0xffffffffu, upper ? v[1] : v[3], 8);
  float sum = (odd ? b : a) + __shfl_xor_sync(0xffffffffu, odd ? a : b, 4);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 1);  // of channel lane / 4
}

// What a block keeps of kTokens tokens. Two of them: one is read while the next fills.
template <int R>
struct Staged {
  float B[kTokens][R * kLanes], C[kTokens][R * kLanes], x[kTokens][kChannels];
  Step steps[kTokens];
};
template <int R>
struct Shared {
  Staged<R> staged[2];
  float y[kTokens][kChannels];
};

// Copies `count` rows of kColumns elements, of which `columns` are there, to shared memory as f32; the rest
// becomes zeros. f32 is copied asynchronously, in vectors where they are aligned.
template <int kColumns>
__device__ __forceinline__ void stage_rows(float (*to)[kColumns], const void* from, DType dtype, int64_t at,
                                           int64_t stride, int count, int columns, bool vectors) {
  if (dtype == DType::f32 && vectors) {
    for (int i = threadIdx.x; i < count * (kColumns / 4); i += blockDim.x) {
      const int t = i / (kColumns / 4), column = i % (kColumns / 4) * 4;
      const bool there = column < columns;
      copy_async(shared_address(&to[t][column]),
                 static_cast<const float*>(from) + (there ? at + t * stride + column : 0), there);
    }
  } else if (dtype == DType::f32) {
    for (int i = threadIdx.x; i < count * kColumns; i += blockDim.x) {
      const int t = i / kColumns, column = i % kColumns;
      const bool there = column < columns;
      copy_word_async(shared_address(&to[t][column]),
                      static_cast<const float*>(from) + (there ? at + t * stride + column : 0), there);
    }
  } else {
#pragma unroll 4
    for (int i = threadIdx.x; i < count * kColumns; i += blockDim.x) {
      const int t = i / kColumns, column = i % kColumns;
      to[t][column] = column < columns ? load_as_f32(from, dtype, at + t * stride + column) : 0.0f;
    }
  }
}

// One block a segment, head and 64 channels; N rows [n_begin, n_begin + 16 R). Where N has more rows than
// 256, launches follow one another and `partial` [T, H*P] carries the sums of y.
template <int R, bool kStatesOnly>
__global__ void __launch_bounds__(kThreads, 2)
    ssd_scan_recurrence_kernel(const SsdView a, int n_begin, float* partial, bool vectors) {
  constexpr int kN = R * kLanes;
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<R>& shared = *reinterpret_cast<Shared<R>*>(memory);
  grid_dependency_wait();
  let_next_start();
  const int p_tiles = (a.P + kChannels - 1) / kChannels, tiles = a.H * p_tiles;
  const int64_t number = blockIdx.x / tiles;
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int head = tile / p_tiles, p_begin = tile % p_tiles * kChannels;
  const int p_count = min(kChannels, a.P - p_begin), n_count = min(kN, a.N - n_begin);
  const Chunk segment = chunk_of(a.batch, number, a.segment);
  if (segment.sequence < 0) return;
  const SegmentEnds ends = ends_of(a, segment);
  if (kStatesOnly && ends.last) return;

  const int tid = threadIdx.x, lane = tid % kLanes, p0 = tid / kLanes * 4;
  const float A = a.A[head], bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  const int64_t group_column = int64_t{head / (a.H / a.G)} * a.N + n_begin;
  const int64_t channel = int64_t{head} * a.P + p_begin;
  double log_decay = 0;  // of the segment, over this thread's tokens
  const auto stage = [&](int64_t begin, Staged<R>& to) {
    const int count = static_cast<int>(min(int64_t{kTokens}, segment.end - begin));
    stage_rows<kN>(to.B, a.B, a.dtype, begin * a.B_stride + group_column, a.B_stride, count, n_count,
                   vectors);
    if (!kStatesOnly)
      stage_rows<kN>(to.C, a.C, a.dtype, begin * a.C_stride + group_column, a.C_stride, count, n_count,
                     vectors);
    stage_rows<kChannels>(to.x, a.x, a.dtype, begin * a.x_stride + channel, a.x_stride, count, p_count,
                          vectors);
    commit_copies();
    if (tid < count) {
      const float raw = load_as_f32(a.dt, a.dtype, (begin + tid) * a.dt_stride + head);
      const float dt = ssd_step_size(a, raw + bias), log = dt * A;
      const bool near_one = log > -0.6931f;
      to.steps[tid] = {dt, near_one ? expm1f(log) : expf(log), near_one, 0};
      log_decay += static_cast<double>(log);
    }
  };
  stage(segment.begin, shared.staged[0]);

  const int64_t state_row = int64_t{head} * a.N + n_begin, state_of_slot = int64_t{a.H} * a.N * a.P;
  float* const passed =
      a.segment_states ? a.segment_states + number * state_of_slot + state_row * a.P + p_begin : nullptr;
  const int64_t kept = ends.slot * state_of_slot + state_row * a.P + p_begin;
  float h[R][4];
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int n = index_of<R>(i, lane);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      h[i][p] = 0;
      if (kStatesOnly || n >= n_count || p0 + p >= p_count) continue;
      const int64_t at = int64_t{n} * a.P + p0 + p;
      if (!ends.whole) {
        h[i][p] = passed[at];
      } else if (a.state) {
        h[i][p] = load_as_f32(a.state, a.state_dtype, kept + at);
      }
    }
  }

  int turn = 0;
  for (int64_t begin = segment.begin; begin < segment.end; begin += kTokens, turn ^= 1) {
    const int count = static_cast<int>(min(int64_t{kTokens}, segment.end - begin));
    wait_for_copies<0>();
    __syncthreads();
    if (begin + kTokens < segment.end) stage(begin + kTokens, shared.staged[turn ^ 1]);
    const Staged<R>& s = shared.staged[turn];
#pragma unroll 2
    for (int t = 0; t < count; ++t) {
      const Step step = s.steps[t];
      float x[4], b[R];
      load<4>(x, &s.x[t][p0]);
      read_row<R>(s.B[t], lane, b);
      advance<R>(h, step, x, b);
      if constexpr (!kStatesOnly) {
        float c[R], y[4] = {};
        read_row<R>(s.C[t], lane, c);
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
          for (int p = 0; p < 4; ++p) y[p] = fmaf(c[i], h[i][p], y[p]);
        const float sum = sum_over_lanes(y, lane);
        if (lane % 4 == 0) shared.y[t][p0 + lane / 4] = sum;
      }
    }
    if constexpr (!kStatesOnly) {
      __syncthreads();
      for (int i = tid; i < count * kChannels; i += blockDim.x) {
        const int t = i / kChannels, p = i % kChannels;
        if (p >= p_count) continue;
        const int64_t at = (begin + t) * a.H * a.P + channel + p;
        float y = shared.y[t][p];
        if (n_begin > 0) y += partial[at];
        if (n_begin + kN < a.N) {
          partial[at] = y;
          continue;
        }
        if (a.D) y = fmaf(a.D[a.D_by_channel ? channel + p : head], s.x[t][p], y);
        store_from_f32(a.y, a.dtype, (begin + t) * a.y_stride + channel + p, y);
      }
    }
  }

  if (kStatesOnly && p_begin == 0 && n_begin == 0 && tid < 32) {
    double sum = log_decay;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (tid == 0) a.segment_decays[number * a.H + head] = static_cast<float>(exp(sum));
  }
  if (!kStatesOnly && (!ends.last || !a.state)) return;
#pragma unroll
  for (int i = 0; i < R; ++i) {
    const int n = index_of<R>(i, lane);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if (n >= n_count || p0 + p >= p_count) continue;
      const int64_t at = int64_t{n} * a.P + p0 + p;
      if (kStatesOnly) {
        passed[at] = h[i][p];
      } else {
        store_from_f32(a.state, a.state_dtype, kept + at, h[i][p]);
      }
    }
  }
}

template <int R, bool kStatesOnly>
void launch_as(const SsdView& a, int n_begin, float* partial) {
  const auto kernel = ssd_scan_recurrence_kernel<R, kStatesOnly>;
  static const bool allowed = allow_shared_bytes(kernel, sizeof(Shared<R>));
  static_cast<void>(allowed);
  const int threads = std::min(kThreads, (kLanes * ((a.P + 3) / 4) + 31) / 32 * 32);
  const auto blocks =
      static_cast<unsigned>(chunk_numbers(a.batch, a.segment) * ssd_recurrence_blocks(a).per_segment);
  const bool vectors = is_multiple(a.P, 4) && is_multiple(a.N, 4) && is_multiple(a.x_stride, 4) &&
                       is_multiple(a.B_stride, 4) && is_multiple(a.C_stride, 4) && is_aligned(a.x) &&
                       is_aligned(a.B) && is_aligned(a.C);
  launch({.grid = dim3(blocks),
          .block = dim3(static_cast<unsigned>(threads)),
          .shared_bytes = sizeof(Shared<R>),
          .overlaps_previous = true},
         kernel, a, n_begin, partial, vectors);
}

template <bool kStatesOnly>
void launch_rows(const SsdView& a, int n_begin, float* partial) {
  const int rows = a.N - n_begin;
  if (rows <= 16) return launch_as<1, kStatesOnly>(a, n_begin, partial);
  if (rows <= 64) return launch_as<4, kStatesOnly>(a, n_begin, partial);
  if (rows <= 128) return launch_as<8, kStatesOnly>(a, n_begin, partial);
  launch_as<16, kStatesOnly>(a, n_begin, partial);
}

}  // namespace

SsdBlocks ssd_recurrence_blocks(const SsdView& a) {
  return {int64_t{a.H} * ((a.P + kChannels - 1) / kChannels), int64_t{2} * properties().multiprocessors};
}

void launch_ssd_recurrence(const SsdView& a, bool states_only) {
  constexpr int kMostRows = 256;
  Tensor partial;
  if (a.N > kMostRows && !states_only)
    partial = Tensor::empty({a.batch.total, int64_t{a.H} * a.P}, DType::f32, kCuda);
  float* const sums = partial.defined() ? partial.data<float>() : nullptr;
  for (int n = 0; n < a.N; n += kMostRows)
    states_only ? launch_rows<true>(a, n, sums) : launch_rows<false>(a, n, sums);
}

}  // namespace ssm::cuda
