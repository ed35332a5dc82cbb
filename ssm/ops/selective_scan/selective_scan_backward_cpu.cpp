// A task is a few blocks of channels of a few sequences, each thread's lanes being channels. A block walks
// its sequence forwards once, keeping the state at the start of every chunk, then the chunks backwards: their
// states are computed again into the L1 cache, a few rows of N at a time. What is summed over channels goes
// through partial sums, one a task, which are added in their order: no sum depends on the threads.
#include <algorithm>
#include <cstring>

#include "ssm/core/parallel.h"
#include "ssm/ops/selective_scan/selective_scan_cpu.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/selective_scan/selective_scan_backward_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_SELECTIVE_SCAN_BACKWARD_ONCE
#define SSM_SELECTIVE_SCAN_BACKWARD_ONCE
namespace ssm {

template <class T>
struct ScanRows {  // of a [T, ...] tensor, or null
  T* data = nullptr;
  int64_t stride = 0;
  T* at(int64_t t) const { return data + t * stride; }
  explicit operator bool() const { return data != nullptr; }
};

constexpr int64_t kScanChunk = 16;         // tokens whose states are held at once
constexpr int64_t kScanSegment = 128;      // chunks whose first states are held at once
constexpr int64_t kScanStates = 4;         // rows of N at once; N is padded to a multiple
constexpr int64_t kScanWidth = 64;         // channels of a block
constexpr int64_t kScanChannelTasks = 32;  // at most
constexpr int64_t kScanSequenceTasks = 8;  // at most

struct SelectiveScanBackward {
  int64_t E, N, N_pad, T;
  ScanRows<const float> u, delta, z, B, C, dy;
  const float* A;  // [N, E], rows A_stride apart
  int64_t A_stride;
  const float *D, *delta_bias;  // or null
  bool delta_softplus;
  const float* initial;  // [B, N, E] or null
  ScanRows<float> du, ddelta, dz;
  bool sums_over_E;  // dB or dC is wanted
};

// Channels [first, last) of sequences [b_first, b_last), and the task's own sums.
struct SelectiveScanTask {
  int64_t first, last, b_first, b_last;
  float* dBC;         // [T, 2, N_pad]
  float* parameters;  // [N + 2, E]: dA, dD, ddelta_bias
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

using DF = hn::ScalableTag<float>;
using V = hn::Vec<DF>;
constexpr int kRows = static_cast<int>(kScanStates);

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(DF())); }

struct Chunk {
  int64_t begin, tokens;
};

struct Block {
  int64_t e0, width, padded;
  float *A, *h, *dh, *dA;                                // [N_pad, padded]
  float *A_max, *dD, *dbias, *delta_max;                 // [padded]
  float *delta2, *delta_u, *dy, *slope, *du, *dt, *sum;  // [kScanChunk, padded]
  float *B, *C;                                          // [kScanChunk, N_pad]
  float *decay, *kept;                                   // [kScanChunk, kScanStates] vectors
  float *dB, *dC;                                        // the same
  float *starts, *segments;                              // states [N_pad, padded]

  static int64_t floats(const SelectiveScanBackward& s, int64_t longest) {
    const int64_t chunks = (longest + kScanChunk - 1) / kScanChunk;
    const int64_t states = std::min(chunks, kScanSegment) + (chunks + kScanSegment - 1) / kScanSegment;
    return (4 + states) * s.N_pad * kScanWidth + (4 + 7 * kScanChunk) * kScanWidth +
           2 * kScanChunk * s.N_pad + 4 * kScanChunk * kScanStates * lanes();
  }

  Block(const SelectiveScanBackward& s, float* p, int64_t first, int64_t channels, int64_t longest)
      : e0(first), width(channels), padded((channels + lanes() - 1) / lanes() * lanes()) {
    const auto take = [&p](int64_t n) { return (p += n) - n; };
    for (float** x : {&A, &h, &dh, &dA}) *x = take(s.N_pad * padded);
    for (float** x : {&A_max, &dD, &dbias, &delta_max}) *x = take(padded);
    for (float** x : {&delta2, &delta_u, &dy, &slope, &du, &dt, &sum}) *x = take(kScanChunk * padded);
    for (float** x : {&B, &C}) *x = take(kScanChunk * s.N_pad);
    for (float** x : {&decay, &kept, &dB, &dC}) *x = take(kScanChunk * kScanStates * lanes());
    const int64_t chunks = (longest + kScanChunk - 1) / kScanChunk;
    starts = take(std::min(chunks, kScanSegment) * s.N_pad * padded);
    segments = p;
    for (float* x : {A, dA}) std::fill_n(x, s.N_pad * padded, 0.0f);
    for (float* x : {A_max, dD, dbias}) std::fill_n(x, padded, 0.0f);
    for (int64_t n = 0; n < s.N; ++n) {
      std::copy_n(s.A + n * s.A_stride + e0, width, A + n * padded);
      for (int64_t i = 0; i < width; ++i) A_max[i] = std::max(A_max[i], std::abs(A[n * padded + i]));
    }
  }

  size_t count(int64_t i) const { return static_cast<size_t>(std::min(lanes(), width - i)); }
};

// softplus and its derivative from one exp.
HWY_INLINE V softplus_and_slope(V x, V& slope) {
  const DF d;
  const V e = exp_f32(d, hn::Neg(hn::Abs(x))), one = hn::Set(d, 1.0f);
  slope = hn::Div(hn::IfThenElse(hn::Ge(x, hn::Zero(d)), one, e), hn::Add(one, e));
  return add_log1p_unit_f32(d, hn::Max(x, hn::Zero(d)), e);
}

// A block's rows lie a whole [T, E] row apart, often in another page each: no hardware prefetcher follows.
// This asks for a vector of the row that the next chunk has in the same place.
template <bool kBack>
HWY_INLINE void prefetch(const SelectiveScanBackward& s, int64_t row, int64_t e) {
  row += kBack ? -kScanChunk : kScanChunk;
  if (row < 0 || row >= s.T) return;
  hwy::Prefetch(s.u.at(row) + e);
  hwy::Prefetch(s.delta.at(row) + e);
  if constexpr (kBack) {
    hwy::Prefetch(s.dy.at(row) + e);
    if (s.z) hwy::Prefetch(s.z.at(row) + e);
    for (const ScanRows<float>& x : {s.du, s.ddelta, s.dz}) {
      if (x) hwy::Prefetch(x.at(row) + e);
    }
  }
}

// What a chunk's tokens take into the recurrence: delta' log2(e), delta' u, and for the way back also the
// slope of delta' and dy'.
template <bool kBack>
HWY_INLINE void load_chunk(const SelectiveScanBackward& s, const Block& k, const Chunk& c) {
  const DF d;
  std::fill_n(k.delta_max, k.padded, 0.0f);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t row = c.begin + t;
    for (int64_t i = 0; i < k.width; i += lanes()) {
      const int64_t e = k.e0 + i, at = t * k.padded + i;
      const size_t n = k.count(i);
      prefetch<kBack>(s, row, e);
      V delta = load_n_f32(d, s.delta.at(row) + e, n), slope = hn::Set(d, 1.0f);
      if (s.delta_bias) delta = hn::Add(delta, load_n_f32(d, s.delta_bias + e, n));
      if (s.delta_softplus) delta = softplus_and_slope(delta, slope);
      const V delta2 = hn::Mul(delta, hn::Set(d, kLog2E));
      hn::Store(delta2, d, k.delta2 + at);
      hn::Store(hn::Mul(delta, load_n_f32(d, s.u.at(row) + e, n)), d, k.delta_u + at);
      hn::Store(hn::Max(hn::Load(d, k.delta_max + i), hn::Abs(delta2)), d, k.delta_max + i);
      if constexpr (kBack) {
        V dy = load_n_f32(d, s.dy.at(row) + e, n);
        if (s.z) dy = hn::Mul(dy, silu_f32(d, load_n_f32(d, s.z.at(row) + e, n)));
        hn::Store(slope, d, k.slope + at);
        hn::Store(dy, d, k.dy + at);
        for (float* x : {k.du, k.dt, k.sum}) hn::Store(hn::Zero(d), d, x + at);
      }
    }
    std::fill_n(k.B + t * s.N_pad, s.N_pad, 0.0f);
    std::copy_n(s.B.at(row), s.N, k.B + t * s.N_pad);
    if constexpr (kBack) {
      std::fill_n(k.C + t * s.N_pad, s.N_pad, 0.0f);
      std::copy_n(s.C.at(row), s.N, k.C + t * s.N_pad);
    }
  }
}

template <bool kInRange>
HWY_INLINE V decay_of(V delta2, V A) {
  if constexpr (kInRange) return exp2_product_in_range(DF(), delta2, A);
  return exp2_product(DF(), delta2, A);
}

// Every |delta2 A| of the chunk is below kExp2Limit; the bits are those of the general case.
HWY_INLINE bool in_range(const Block& k, int64_t i) {
  const DF d;
  const V largest = hn::Mul(hn::Load(d, k.delta_max + i), hn::Load(d, k.A_max + i));
  return hn::AllTrue(d, hn::Lt(largest, hn::Set(d, kExp2Limit)));
}

// Rows n .. n + kRows of h over a chunk, at the vector of channels i.
template <bool kInRange>
HWY_INLINE void advance(const SelectiveScanBackward& s, const Block& k, const Chunk& c, int64_t n,
                        int64_t i) {
  const DF d;
  V A[kRows], h[kRows];
  for (int r = 0; r < kRows; ++r) {
    A[r] = hn::Load(d, k.A + (n + r) * k.padded + i);
    h[r] = hn::Load(d, k.h + (n + r) * k.padded + i);
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    const V delta2 = hn::Load(d, k.delta2 + t * k.padded + i);
    const V delta_u = hn::Load(d, k.delta_u + t * k.padded + i);
    const float* const B = k.B + t * s.N_pad + n;
    for (int r = 0; r < kRows; ++r) {
      h[r] = hn::MulAdd(decay_of<kInRange>(delta2, A[r]), h[r], hn::Mul(delta_u, hn::Set(d, B[r])));
    }
  }
  for (int r = 0; r < kRows; ++r) hn::Store(h[r], d, k.h + (n + r) * k.padded + i);
}

void advance_chunk(const SelectiveScanBackward& s, const Block& k, const Chunk& c) {
  load_chunk<false>(s, k, c);
  for (int64_t i = 0; i < k.padded; i += lanes()) {
    const bool fast = in_range(k, i);
    for (int64_t n = 0; n < s.N_pad; n += kRows) {
      if (fast)
        advance<true>(s, k, c, n, i);
      else
        advance<false>(s, k, c, n, i);
    }
  }
}

// The chunk's states again, from `start`: keeps exp(delta' A) and exp(delta' A) h[t-1], adds to the sum of C
// h and to dC.
template <bool kInRange>
HWY_INLINE void replay(const SelectiveScanBackward& s, const Block& k, const Chunk& c, const float* start,
                       int64_t n, int64_t i) {
  const DF d;
  V A[kRows], h[kRows];
  for (int r = 0; r < kRows; ++r) {
    A[r] = hn::Load(d, k.A + (n + r) * k.padded + i);
    h[r] = hn::Load(d, start + (n + r) * k.padded + i);
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    const V delta2 = hn::Load(d, k.delta2 + t * k.padded + i);
    const V delta_u = hn::Load(d, k.delta_u + t * k.padded + i);
    const V dy = hn::Load(d, k.dy + t * k.padded + i);
    const float* const B = k.B + t * s.N_pad + n;
    const float* const C = k.C + t * s.N_pad + n;
    V sum = hn::Load(d, k.sum + t * k.padded + i);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (t * kRows + r) * lanes();
      const V decay = decay_of<kInRange>(delta2, A[r]);
      const V kept = hn::Mul(decay, h[r]);
      h[r] = hn::MulAdd(delta_u, hn::Set(d, B[r]), kept);
      hn::Store(decay, d, k.decay + at);
      hn::Store(kept, d, k.kept + at);
      sum = hn::MulAdd(h[r], hn::Set(d, C[r]), sum);
      hn::Store(hn::MulAdd(dy, h[r], hn::Load(d, k.dC + at)), d, k.dC + at);
    }
    hn::Store(sum, d, k.sum + t * k.padded + i);
  }
}

// Back through those states: dh, and what hangs on it.
HWY_INLINE void retreat(const SelectiveScanBackward& s, const Block& k, const Chunk& c, int64_t n,
                        int64_t i) {
  const DF d;
  V A[kRows], dh[kRows], dA[kRows];
  for (int r = 0; r < kRows; ++r) {
    A[r] = hn::Load(d, k.A + (n + r) * k.padded + i);
    dh[r] = hn::Load(d, k.dh + (n + r) * k.padded + i);  // exp(delta'[t+1] A) dh[t+1]
    dA[r] = hn::Load(d, k.dA + (n + r) * k.padded + i);
  }
  for (int64_t t = c.tokens; t-- > 0;) {
    const V delta2 = hn::Load(d, k.delta2 + t * k.padded + i);
    const V delta_u = hn::Load(d, k.delta_u + t * k.padded + i);
    const V dy = hn::Load(d, k.dy + t * k.padded + i);
    const float* const B = k.B + t * s.N_pad + n;
    const float* const C = k.C + t * s.N_pad + n;
    V du = hn::Load(d, k.du + t * k.padded + i), dt = hn::Load(d, k.dt + t * k.padded + i);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (t * kRows + r) * lanes();
      const V g = hn::MulAdd(dy, hn::Set(d, C[r]), dh[r]);
      const V through_decay = hn::Mul(g, hn::Load(d, k.kept + at));
      dA[r] = hn::MulAdd(through_decay, delta2, dA[r]);
      dt = hn::MulAdd(through_decay, A[r], dt);
      du = hn::MulAdd(g, hn::Set(d, B[r]), du);
      hn::Store(hn::MulAdd(g, delta_u, hn::Load(d, k.dB + at)), d, k.dB + at);
      dh[r] = hn::Mul(g, hn::Load(d, k.decay + at));
    }
    hn::Store(du, d, k.du + t * k.padded + i);
    hn::Store(dt, d, k.dt + t * k.padded + i);
  }
  for (int r = 0; r < kRows; ++r) {
    hn::Store(dh[r], d, k.dh + (n + r) * k.padded + i);
    hn::Store(dA[r], d, k.dA + (n + r) * k.padded + i);
  }
}

// Adds the lanes' sums of dB and dC to the task's.
HWY_INLINE void add_over_channels(const SelectiveScanBackward& s, const Block& k, const Chunk& c, int64_t n,
                                  float* dBC) {
  const DF d;
  for (int64_t t = 0; t < c.tokens; ++t) {
    float* const row = dBC + (c.begin + t) * 2 * s.N_pad + n;
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (t * kRows + r) * lanes();
      row[r] += hn::GetLane(hn::SumOfLanes(d, hn::Load(d, k.dB + at)));
      row[s.N_pad + r] += hn::GetLane(hn::SumOfLanes(d, hn::Load(d, k.dC + at)));
    }
  }
}

// The gradients of a chunk's own tokens, from the sums over n.
HWY_INLINE void finish_chunk(const SelectiveScanBackward& s, const Block& k, const Chunk& c) {
  const DF d;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t row = c.begin + t;
    for (int64_t i = 0; i < k.width; i += lanes()) {
      const int64_t e = k.e0 + i, at = t * k.padded + i;
      const size_t n = k.count(i);
      const V u = load_n_f32(d, s.u.at(row) + e, n), dy = hn::Load(d, k.dy + at);
      const V D = s.D ? load_n_f32(d, s.D + e, n) : hn::Zero(d);
      const V dh_B = hn::Load(d, k.du + at);
      const V delta = hn::Mul(hn::Load(d, k.delta2 + at), hn::Set(d, 1.0f / kLog2E));
      const V ddelta = hn::Mul(hn::MulAdd(u, dh_B, hn::Load(d, k.dt + at)), hn::Load(d, k.slope + at));
      hn::Store(hn::MulAdd(dy, u, hn::Load(d, k.dD + i)), d, k.dD + i);
      hn::Store(hn::Add(ddelta, hn::Load(d, k.dbias + i)), d, k.dbias + i);
      if (s.ddelta) store_n_f32(d, ddelta, s.ddelta.at(row) + e, n);
      if (s.du) store_n_f32(d, hn::MulAdd(delta, dh_B, hn::Mul(D, dy)), s.du.at(row) + e, n);
      if (s.dz) {
        const V gate = silu_slope_f32(d, load_n_f32(d, s.z.at(row) + e, n));
        const V y = hn::MulAdd(D, u, hn::Load(d, k.sum + at));
        const V dz = hn::Mul(hn::Mul(load_n_f32(d, s.dy.at(row) + e, n), y), gate);
        store_n_f32(d, dz, s.dz.at(row) + e, n);
      }
    }
  }
}

void chunk_backward(const SelectiveScanBackward& s, const Block& k, const Chunk& c, const float* start,
                    float* dBC) {
  load_chunk<true>(s, k, c);
  for (int64_t n = 0; n < s.N_pad; n += kRows) {
    for (float* x : {k.dB, k.dC}) std::fill_n(x, c.tokens * kRows * lanes(), 0.0f);
    for (int64_t i = 0; i < k.padded; i += lanes()) {
      if (in_range(k, i))
        replay<true>(s, k, c, start, n, i);
      else
        replay<false>(s, k, c, start, n, i);
      retreat(s, k, c, n, i);
    }
    if (s.sums_over_E) add_over_channels(s, k, c, n, dBC);
  }
  finish_chunk(s, k, c);
}

// Tokens [begin, end) of sequence b.
void sequence_backward(const SelectiveScanBackward& s, const Block& k, int64_t b, int64_t begin, int64_t end,
                       float* dBC) {
  const int64_t state = s.N_pad * k.padded, segment = kScanSegment * kScanChunk;
  const auto chunk_at = [&](int64_t t, int64_t last) { return Chunk{t, std::min(kScanChunk, last - t)}; };
  std::fill_n(k.dh, state, 0.0f);
  std::fill_n(k.h, state, 0.0f);
  for (int64_t n = 0; s.initial && n < s.N; ++n) {
    std::copy_n(s.initial + (b * s.N + n) * s.E + k.e0, k.width, k.h + n * k.padded);
  }
  const int64_t segments = (end - begin + segment - 1) / segment;
  for (int64_t i = 0; i < segments; ++i) {
    std::copy_n(k.h, state, k.segments + i * state);
    for (int64_t t = begin + i * segment; i + 1 < segments && t < begin + (i + 1) * segment; t += kScanChunk)
      advance_chunk(s, k, chunk_at(t, end));
  }
  for (int64_t i = segments; i-- > 0;) {
    const int64_t first = begin + i * segment, last = std::min(end, first + segment);
    const int64_t chunks = (last - first + kScanChunk - 1) / kScanChunk;
    std::copy_n(k.segments + i * state, state, k.h);
    for (int64_t j = 0; j < chunks; ++j) {
      std::copy_n(k.h, state, k.starts + j * state);
      if (j + 1 < chunks) advance_chunk(s, k, chunk_at(first + j * kScanChunk, last));
    }
    for (int64_t j = chunks; j-- > 0;) {
      chunk_backward(s, k, chunk_at(first + j * kScanChunk, last), k.starts + j * state, dBC);
    }
  }
}

void selective_scan_backward_task(const SelectiveScanBackward& s, const SequenceBatch& batch,
                                  const SelectiveScanTask& task, int64_t longest) {
  float* const scratch = cpu::thread_scratch(Block::floats(s, longest));
  if (s.sums_over_E) {
    std::fill(task.dBC + batch.offset(task.b_first) * 2 * s.N_pad,
              task.dBC + batch.offset(task.b_last) * 2 * s.N_pad, 0.0f);
  }
  for (int64_t e = task.first; e < task.last; e += kScanWidth) {
    const Block block(s, scratch, e, std::min(kScanWidth, task.last - e), longest);
    for (int64_t b = task.b_first; b < task.b_last; ++b) {
      sequence_backward(s, block, b, batch.offset(b), batch.offset(b + 1), task.dBC);
    }
    float* const sums = task.parameters + e;
    for (int64_t n = 0; n < s.N; ++n) {  // delta2 is in units of log 2
      for (int64_t i = 0; i < block.width; ++i) sums[n * s.E + i] = block.dA[n * block.padded + i] / kLog2E;
    }
    std::copy_n(block.dD, block.width, sums + s.N * s.E);
    std::copy_n(block.dbias, block.width, sums + (s.N + 1) * s.E);
  }
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(selective_scan_backward_task);

namespace {

// dB and dC: the tasks' sums in their order.
void add_partial_rows(const Tensor& partial, int64_t tasks, int64_t T, int64_t N, int64_t N_pad,
                      const SelectiveScanGrads& grads) {
  parallel_for(T, 64, [&](int64_t begin, int64_t end) {
    for (int which = 0; which < 2; ++which) {
      const Tensor& to = which == 0 ? grads.dB : grads.dC;
      for (int64_t t = begin; to.defined() && t < end; ++t) {
        float* const row = to.data<float>() + t * to.stride(0);
        std::fill_n(row, N, 0.0f);
        for (int64_t i = 0; i < tasks; ++i) {
          const float* const from = partial.data<float>() + ((i * T + t) * 2 + which) * N_pad;
          for (int64_t n = 0; n < N; ++n) row[n] += from[n];
        }
      }
    }
  });
}

// partial [tasks, N + 2, E] onto dA, dD and ddelta_bias.
void add_parameters(const Tensor& partial, const SelectiveScanGrads& grads) {
  const int64_t N = partial.size(1) - 2, E = partial.size(2);
  parallel_for((N + 2) * E, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / E, e = i % E;
      const Tensor& to = n < N ? grads.dA : n == N ? grads.dD : grads.ddelta_bias;
      if (!to.defined()) continue;
      float sum = 0;
      for (int64_t task = 0; task < partial.size(0); ++task) {
        sum += partial.data<float>()[task * (N + 2) * E + i];
      }
      to.data<float>()[n < N ? e * to.stride(0) + n * to.stride(1) : e * to.stride(0)] += sum;
    }
  });
}

}  // namespace

void cpu::selective_scan_backward(const SelectiveScanArgs& args, const SequenceBatch& batch,
                                  const Tensor& initial, const Tensor& dy, const SelectiveScanGrads& grads) {
  const auto rows = [](const Tensor& x) {
    return x.defined() ? ScanRows<const float>{x.data<float>(), x.stride(0)} : ScanRows<const float>{};
  };
  const auto wanted = [](const Tensor& x) {
    return x.defined() ? ScanRows<float>{x.data<float>(), x.stride(0)} : ScanRows<float>{};
  };
  const auto data = [](const Tensor& x) { return x.defined() ? x.data<float>() : nullptr; };
  const int64_t E = args.A.size(0), N = args.A.size(1), T = batch.total();
  // Channels must lie side by side.
  const Tensor A = args.A.stride(0) == 1 ? args.A.transpose(0, 1) : args.A.transpose(0, 1).clone();
  SelectiveScanBackward s{};
  s.E = E, s.N = N, s.N_pad = (N + kScanStates - 1) / kScanStates * kScanStates, s.T = T;
  s.u = rows(args.u), s.delta = rows(args.delta), s.z = rows(args.z);
  s.B = rows(args.B), s.C = rows(args.C), s.dy = rows(dy);
  s.A = data(A), s.A_stride = A.stride(0), s.D = data(args.D), s.delta_bias = data(args.delta_bias);
  s.delta_softplus = args.delta_softplus, s.initial = data(initial);
  s.du = wanted(grads.du), s.ddelta = wanted(grads.ddelta), s.dz = wanted(grads.dz);
  s.sums_over_E = grads.dB.defined() || grads.dC.defined();

  const int64_t blocks = (E + kScanWidth - 1) / kScanWidth;
  const int64_t width = (blocks + kScanChannelTasks - 1) / kScanChannelTasks * kScanWidth;
  const int64_t channel_tasks = (E + width - 1) / width;
  const int64_t run = (batch.size() + kScanSequenceTasks - 1) / kScanSequenceTasks;
  const int64_t sequence_tasks = (batch.size() + run - 1) / run;
  int64_t longest = 0;
  for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
  const Tensor over_channels = s.sums_over_E ? Tensor::empty({channel_tasks, T, 2, s.N_pad}) : Tensor();
  const Tensor parameters = Tensor::empty({sequence_tasks, N + 2, E});
  parallel_for(sequence_tasks * channel_tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % channel_tasks, q = i / channel_tasks;
      const SelectiveScanTask task{
          c * width,
          std::min(E, (c + 1) * width),
          q * run,
          std::min(batch.size(), (q + 1) * run),
          s.sums_over_E ? over_channels.data<float>() + c * T * 2 * s.N_pad : nullptr,
          parameters.data<float>() + q * (N + 2) * E};
      HWY_DYNAMIC_DISPATCH(selective_scan_backward_task)(s, batch, task, longest);
    }
  });
  if (s.sums_over_E) add_partial_rows(over_channels, channel_tasks, T, N, s.N_pad, grads);
  add_parameters(parameters, grads);
}

}  // namespace ssm
#endif
