// A call runs in rounds of a few chunks, so that its working memory does not grow with T. In a round, what
// the heads of a group share is computed first (bmm: C B^T), then each (sequence, head) walks its chunks.
#include "ssm/ops/ssd_scan/ssd_scan_cpu.h"

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/scratch.h"
#include "ssm/ops/ssd_scan/ssd_scan_operands.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/ssd_scan/ssd_scan_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/ssd_scan/matmul-inl.h"
#include "ssm/ops/ssd_scan/ssd_scan_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

void ssd_bmm(const SsdOperands& s, const SsdChunkWork& chunk, int64_t g) { chunk_bmm(s, chunk, g); }

// Mt[j, i] = (C_i . B_j) exp(s_i - s_j) dt_j where j <= i, else 0: the chunk's attention matrix, transposed.
// What lies wholly below the diagonal's tiles and vectors is left alone: no tile reads it.
HWY_INLINE void attention(const float* BCt, const Decays& decays, int64_t length, float* Mt) {
  const DF d;
  const int64_t unit = std::max<int64_t>(lanes(), kTileRows);
  const int64_t end = (length + unit - 1) / unit * unit;
  for (int64_t j = 0; j < length; ++j) {
    const V dt = hn::Set(d, decays.dt[j]);
    for (int64_t i = j / unit * unit; i < end; i += lanes()) {
      const V m = hn::Mul(hn::Mul(hn::LoadU(d, BCt + j * kL + i), dt), decays.since(i, j));
      const auto causal = hn::Ge(hn::Iota(d, static_cast<float>(i)), hn::Set(d, static_cast<float>(j)));
      hn::Store(hn::IfThenElseZero(causal, m), d, Mt + j * kL + i);
    }
  }
}

struct HeadScratch {
  float *x, *x_to_end;  // [L, P_pad]: x_j, and x_j exp(s_L - s_j) dt_j
  float* Mt;            // [L, L]
  float* y;             // [tile rows, P_pad]
  float* D;             // [P_pad]
  float* h;             // [N_pad, P_pad], where the state's own rows do not fit the tiles, or are narrow

  static HeadScratch allocate(const SsdOperands& s) {
    const int64_t y_rows = kTileRows * s.P_pad;
    float* p = cpu::thread_scratch(2 * kL * s.P_pad + kL * kL + y_rows + s.P_pad + s.N_pad * s.P_pad);
    const auto take = [&p](int64_t floats) { return (p += floats) - floats; };
    return {take(kL * s.P_pad), take(kL * s.P_pad), take(kL * kL),
            take(y_rows),       take(s.P_pad),      take(s.N_pad * s.P_pad)};
  }
};

HWY_INLINE void load_x(const SsdOperands& s, int64_t head, const SsdChunkWork& chunk, const Decays& decays,
                       const HeadScratch& scratch) {
  const DF d;
  for (int64_t j = 0; j < chunk.length; ++j) {
    float* const row = scratch.x + j * s.P_pad;
    std::copy_n(s.x.at(chunk.begin + j) + head * s.P, s.P, row);
    std::fill(row + s.P, row + s.P_pad, 0.0f);
    const V weight = hn::Set(d, decays.to_end[j]);
    for (int64_t p = 0; p < s.P_pad; p += lanes()) {
      hn::Store(hn::Mul(hn::Load(d, row + p), weight), d, scratch.x_to_end + j * s.P_pad + p);
    }
  }
}

// chunk_scan: y_i = exp(s_i) C_i h_in + sum_{j <= i} M_ij x_j + D x_i.
HWY_INLINE void chunk_scan(const SsdOperands& s, int64_t head, const SsdChunkWork& chunk, const float* Ct,
                           const Decays& decays, const HeadScratch& scratch, const float* h) {
  const DF d;
  for (int64_t i = 0; i < chunk.length; i += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, chunk.length - i);
    for_each_tile(s.P_pad, [&](auto tile, int64_t p) HWY_ATTR {
      tile.zero();
      tile.add_product(Ct + i, 1, kL, h + p, s.P_pad, s.N);
      tile.scale_rows(decays.from_start + i);
      tile.add_product(scratch.Mt + i, 1, kL, scratch.x + p, s.P_pad, i + rows);
      tile.store(scratch.y + p, s.P_pad);
    });
    for (int64_t r = 0; r < rows; ++r) {
      float* const y = scratch.y + r * s.P_pad;
      const float* const x = scratch.x + (i + r) * s.P_pad;
      for (int64_t p = 0; s.D && p < s.P_pad; p += lanes()) {
        hn::Store(hn::MulAdd(hn::Load(d, scratch.D + p), hn::Load(d, x + p), hn::Load(d, y + p)), d, y + p);
      }
      std::copy_n(y, s.P, s.y + (chunk.begin + i + r) * s.H * s.P + head * s.P);
    }
  }
}

// chunk_state and state_passing: h = exp(s_L) h + sum_j B_j (exp(s_L - s_j) dt_j x_j)^T.
HWY_INLINE void chunk_state(const SsdOperands& s, int64_t length, const float* B, const Decays& decays,
                            const HeadScratch& scratch, float* h) {
  float whole[kTileRows];
  std::fill_n(whole, kTileRows, decays.whole);
  for (int64_t n = 0; n < s.N_pad; n += kTileRows) {
    for_each_tile(s.P_pad, [&](auto tile, int64_t p) HWY_ATTR {
      float* const rows = h + n * s.P_pad + p;
      tile.load(rows, s.P_pad);
      tile.scale_rows(whole);
      tile.add_product(B + n, 1, s.N_pad, scratch.x_to_end + p, s.P_pad, length);
      tile.store(rows, s.P_pad);
    });
  }
}

// One token of `W` vectors of P, in one pass over the state: h = exp(dt A) h + dt B x^T, y = C h + D x.
template <int W, class State>
HWY_INLINE void step_columns(int64_t N, int64_t P, const float* HWY_RESTRICT B, const float* HWY_RESTRICT C,
                             V decay, V dt, const float* x, const float* D, State* HWY_RESTRICT h, float* y) {
  const DF d;
  V dt_x[W], sum[W];
  for (int w = 0; w < W; ++w) {
    dt_x[w] = hn::Mul(dt, hn::LoadU(d, x + w * lanes()));
    sum[w] = hn::Zero(d);
  }
  for (int64_t n = 0; n < N; ++n) {
    const V b = hn::Set(d, B[n]), c = hn::Set(d, C[n]);
    for (int w = 0; w < W; ++w) {
      State* const p = h + n * P + w * lanes();
      const V next = hn::MulAdd(decay, load_f32(d, p), hn::Mul(dt_x[w], b));
      store_f32(d, next, p);
      sum[w] = hn::MulAdd(c, next, sum[w]);
    }
  }
  for (int w = 0; w < W; ++w) {
    if (D) sum[w] = hn::MulAdd(hn::LoadU(d, D + w * lanes()), hn::LoadU(d, x + w * lanes()), sum[w]);
    hn::StoreU(sum[w], d, y + w * lanes());
  }
}

// The columns that fill no vector, by way of padded copies.
template <class State>
void step_tail(const SsdOperands& s, const float* B, const float* C, V decay, V dt, const float* x,
               const HeadScratch& scratch, int64_t p, State* h, float* y) {
  const int64_t count = s.P - p;
  HWY_ALIGN float padded_x[hn::MaxLanes(DF())] = {}, padded_y[hn::MaxLanes(DF())];
  std::copy_n(x + p, count, padded_x);
  for (int64_t n = 0; n < s.N; ++n) {
    float* const row = scratch.h + n * lanes();
    convert_row(h + n * s.P + p, count, row);
    std::fill(row + count, row + lanes(), 0.0f);
  }
  const float* const D = s.D ? scratch.D + p : nullptr;
  step_columns<1>(s.N, lanes(), B, C, decay, dt, padded_x, D, scratch.h, padded_y);
  for (int64_t n = 0; n < s.N; ++n) convert_row(scratch.h + n * lanes(), count, h + n * s.P + p);
  std::copy_n(padded_y, count, y + p);
}

template <class State>
void step(const SsdOperands& s, int64_t head, int64_t t, const HeadScratch& scratch, State* h) {
  const DF d;
  const int64_t g = head / (s.H / s.G);
  HWY_ALIGN float dt_now[kL];
  load_dt(s, head, t, 1, dt_now);
  const double exponent = static_cast<double>(dt_now[0]) * s.A[head] * 1.4426950408889634;
  const V dt = hn::Set(d, dt_now[0]);
  const V decay = exp2_product(d, hn::Set(d, static_cast<float>(exponent)), hn::Set(d, 1.0f));
  const float* const B = s.B.at(t) + g * s.N;
  const float* const C = s.C.at(t) + g * s.N;
  const float* const x = s.x.at(t) + head * s.P;
  const float* const D = s.D ? scratch.D : nullptr;
  float* const y = s.y + (t * s.H + head) * s.P;
  int64_t p = 0;
  for (; p + 4 * lanes() <= s.P; p += 4 * lanes()) {
    step_columns<4>(s.N, s.P, B, C, decay, dt, x + p, D ? D + p : nullptr, h + p, y + p);
  }
  for (; p + lanes() <= s.P; p += lanes()) {
    step_columns<1>(s.N, s.P, B, C, decay, dt, x + p, D ? D + p : nullptr, h + p, y + p);
  }
  if (p < s.P) step_tail(s, B, C, decay, dt, x, scratch, p, h, y);
}

// [N, P] between the state's own rows and rows of P_pad, N_pad of them.
template <class State>
void pad_state(const SsdOperands& s, const State* state, float* h) {
  std::fill_n(h, s.N_pad * s.P_pad, 0.0f);
  for (int64_t n = 0; n < s.N; ++n) convert_row(state + n * s.P, s.P, h + n * s.P_pad);
}
template <class State>
void unpad_state(const SsdOperands& s, const float* h, State* state) {
  for (int64_t n = 0; n < s.N; ++n) convert_row(h + n * s.P_pad, s.P, state + n * s.P);
}

// A head's walk over the chunks of one sequence that a round holds; `state` [N, P]. A narrow one is rounded
// after the last chunk and after single tokens.
template <class State>
void walk_head(const SsdOperands& s, std::span<const SsdChunkWork> chunks, int64_t head, State* state) {
  const int64_t g = head / (s.H / s.G);
  const HeadScratch scratch = HeadScratch::allocate(s);
  for (int64_t p = 0; s.D && p < s.P_pad; ++p) {
    scratch.D[p] = p >= s.P ? 0.0f : s.D_per_channel ? s.D[head * s.P + p] : s.D[head];
  }
  float* h = scratch.h;
  if constexpr (std::is_same_v<State, float>) {
    if (s.P == s.P_pad && s.N == s.N_pad) h = state;
  }
  bool held = false;  // the state is in scratch.h
  const auto put_back = [&] {
    if (std::exchange(held, false)) unpad_state(s, h, state);
  };
  Decays decays;
  for (const SsdChunkWork& chunk : chunks) {
    if (chunk.length == 1) {
      put_back();
      step(s, head, chunk.begin, scratch, state);
      continue;
    }
    decays.compute(s, head, chunk.begin, chunk.length);
    attention(chunk.BCt(s, g), decays, chunk.length, scratch.Mt);
    load_x(s, head, chunk, decays, scratch);
    if (h == scratch.h && !std::exchange(held, true)) pad_state(s, state, h);
    chunk_scan(s, head, chunk, chunk.Ct(s, g), decays, scratch, h);
    chunk_state(s, chunk.length, chunk.B(s, g), decays, scratch, h);
  }
  put_back();
}

// `state`: rows of any type, this head's begins at element `at`.
void ssd_head(const SsdOperands& s, std::span<const SsdChunkWork> chunks, int64_t head, const Tensor& state,
              int64_t at) {
  switch (state.dtype()) {
    case DType::bf16:
      return walk_head(s, chunks, head, state.data<BFloat16>() + at);
    case DType::f16:
      return walk_head(s, chunks, head, state.data<Float16>() + at);
    default:
      return walk_head(s, chunks, head, state.data<float>() + at);
  }
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(ssd_bmm);
HWY_EXPORT(ssd_head);

namespace {

// Consecutive chunks of the batch, grouped by sequence.
struct Round {
  struct Run {
    int32_t slot;
    size_t first, last;  // of chunks
  };
  std::vector<SsdChunkWork> chunks;
  std::vector<Run> runs;
  std::vector<size_t> shared;  // the chunks longer than a token

  void clear() { chunks.clear(), runs.clear(), shared.clear(); }
  void add(int32_t slot, bool same_sequence, const SsdChunkWork& chunk) {
    if (runs.empty() || !same_sequence) runs.push_back({slot, chunks.size(), chunks.size()});
    if (chunk.length > 1) shared.push_back(chunks.size());
    chunks.push_back(chunk);
    runs.back().last = chunks.size();
  }
};

void run_round(const SsdOperands& s, const Round& round, const Tensor& state) {
  const auto& chunks = round.chunks;
  parallel_for(static_cast<int64_t>(round.shared.size()) * s.G, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HWY_DYNAMIC_DISPATCH(ssd_bmm)(s, chunks[round.shared[static_cast<size_t>(i / s.G)]], i % s.G);
    }
  });
  parallel_for(static_cast<int64_t>(round.runs.size()) * s.H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Round::Run& run = round.runs[static_cast<size_t>(i / s.H)];
      HWY_DYNAMIC_DISPATCH(ssd_head)
      (s, std::span(chunks).subspan(run.first, run.last - run.first), i % s.H, state,
       (run.slot * s.H + i % s.H) * s.N * s.P);
    }
  });
}

}  // namespace

void cpu::ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                   const Tensor& y) {
  SsdOperands s = SsdOperands::of(args);
  s.y = y.data<float>();
  Tensor h = state;
  if (!h.defined()) {
    const ArenaScope heap(nullptr);
    h = Tensor::zeros({batch.size(), s.H, s.N, s.P});
  }
  // Enough chunks a round to feed the threads, no more: they should stay in the L2 cache.
  const int64_t capacity = std::max<int64_t>(1, std::max(16, 2 * num_threads()) / s.G);
  const int64_t floats = s.G * SsdChunkWork::floats_per_group(s);
  float* const shared = batch.is_step() ? nullptr : thread_scratch<SharedScratch>(capacity * floats);
  Round round;
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int32_t slot = state.defined() ? batch.slot(b) : static_cast<int32_t>(b);
    for (int64_t begin = batch.offset(b); begin < batch.offset(b + 1); begin += kL) {
      const int64_t length = std::min(kL, batch.offset(b + 1) - begin);
      const auto used = static_cast<int64_t>(round.shared.size());
      if (length > 1 && used == capacity) {
        run_round(s, round, h);
        round.clear();
      }
      float* const memory =
          length > 1 ? shared + static_cast<int64_t>(round.shared.size()) * floats : nullptr;
      round.add(slot, begin != batch.offset(b), {begin, length, memory});
    }
  }
  run_round(s, round, h);
}

}  // namespace ssm
#endif
