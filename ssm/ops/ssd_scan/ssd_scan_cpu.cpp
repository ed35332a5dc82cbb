// A call runs in rounds of a few chunks, so that its working memory does not grow with T. In a round, what
// the heads of a group share is computed first (bmm: C B^T), then each (sequence, head) walks its chunks.
#include "ssm/ops/ssd_scan/ssd_scan_cpu.h"

#include <algorithm>
#include <span>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/ssd_scan/ssd_scan_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/ssd_scan/matmul-inl.h"

#ifndef SSM_SSD_SCAN_ONCE
#define SSM_SSD_SCAN_ONCE
namespace ssm {

constexpr int64_t kL = kSsdChunk;

struct SsdRows {  // of a [T, ...] operand
  const float* data = nullptr;
  int64_t stride = 0;
  const float* at(int64_t t) const { return data + t * stride; }
};

struct SsdOperands {
  int64_t H, P, G, N;
  int64_t P_pad, N_pad;  // multiples of the lanes, of the tile's rows
  SsdRows x, dt, B, C;
  const float *A, *D, *dt_bias;  // D and dt_bias may be null
  bool D_per_channel;            // D is [H*P]
  bool dt_softplus;
  float dt_min, dt_max;
  float* y;  // [T, H*P]
};

// A chunk and what its groups share; memory only where the chunk is longer than one token.
struct SsdChunkWork {
  int64_t begin, length;
  float* shared;  // [G] x {B [L, N_pad], C^T [N, L], B C^T [L, L]}
  static int64_t floats_per_group(const SsdOperands& s) { return kL * (s.N_pad + s.N + kL); }
  float* B(const SsdOperands& s, int64_t g) const { return shared + g * floats_per_group(s); }
  float* Ct(const SsdOperands& s, int64_t g) const { return B(s, g) + kL * s.N_pad; }
  float* BCt(const SsdOperands& s, int64_t g) const { return Ct(s, g) + kL * s.N; }
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

using DF = hn::ScalableTag<float>;
using V = hn::Vec<DF>;

// bmm: the chunk's B, C^T and (C B^T)^T, rows j and columns i zero past its length.
void ssd_bmm(const SsdOperands& s, const SsdChunkWork& chunk, int64_t g) {
  float* const B = chunk.B(s, g);
  float* const Ct = chunk.Ct(s, g);
  float* const BCt = chunk.BCt(s, g);
  const int64_t L = chunk.length;
  for (int64_t j = 0; j < kL; ++j) {
    float* const row = B + j * s.N_pad;
    const int64_t n = j < L ? s.N : 0;
    if (n > 0) std::copy_n(s.B.at(chunk.begin + j) + g * s.N, n, row);
    std::fill(row + n, row + s.N_pad, 0.0f);
  }
  for (int64_t i = 0; i < kL; ++i) {
    const float* const row = i < L ? s.C.at(chunk.begin + i) + g * s.N : nullptr;
    for (int64_t n = 0; n < s.N; ++n) Ct[n * kL + i] = row ? row[n] : 0.0f;
  }
  for (int64_t j = 0; j < L; j += kTileRows) {
    for_each_tile(kL, [&](auto tile, int64_t i) HWY_ATTR {
      tile.zero();
      tile.add_product(B + j * s.N_pad, s.N_pad, 1, Ct + i, kL, s.N);
      tile.store(BCt + j * kL + i, kL);
    });
  }
}

// dt' of one head for tokens begin .. begin + length; zeros follow up to whole vectors.
HWY_INLINE void load_dt(const SsdOperands& s, int64_t h, int64_t begin, int64_t length, float* out) {
  const DF d;
  const float bias = s.dt_bias ? s.dt_bias[h] : 0.0f;
  for (int64_t i = 0; i < length; ++i) out[i] = s.dt.at(begin + i)[h] + bias;
  for (int64_t i = 0; i < length; i += lanes()) {
    V dt = hn::LoadU(d, out + i);
    if (s.dt_softplus) dt = softplus_f32(d, dt);
    dt = hn::Min(hn::Max(dt, hn::Set(d, s.dt_min)), hn::Set(d, s.dt_max));
    hn::StoreU(dt, d, out + i);
  }
  std::fill(out + length, out + kL, 0.0f);
}

// The decays of a head's chunk. s_i is the sum of dt' A up to token i, in units of log 2, as a pair of floats
// so that s_i - s_j keeps its accuracy where the sums have grown.
struct Decays {
  HWY_ALIGN float dt[kL], high[kL], low[kL];
  HWY_ALIGN float from_start[kL];  // exp(s_i): what is left of the state at i
  HWY_ALIGN float to_end[kL];      // exp(s_L - s_j) dt_j: how token j enters the next state
  float whole;                     // exp(s_L)

  HWY_INLINE void compute(const SsdOperands& s, int64_t h, int64_t begin, int64_t length) {
    const DF d;
    load_dt(s, h, begin, length, dt);
    double sum = 0;
    for (int64_t i = 0; i < kL; ++i) {
      sum += static_cast<double>(dt[i]) * s.A[h] * 1.4426950408889634;
      high[i] = static_cast<float>(sum);
      low[i] = static_cast<float>(sum - high[i]);
    }
    const V one = hn::Set(d, 1.0f);
    for (int64_t i = 0; i < kL; i += lanes()) {
      hn::Store(exp2_product(d, hn::Load(d, high + i), one), d, from_start + i);
      hn::Store(hn::Mul(between(kL - 1, i), hn::Load(d, dt + i)), d, to_end + i);
    }
    whole = from_start[kL - 1];
  }

  // exp(s_i - s_j) for one i and a vector of j.
  HWY_INLINE V between(int64_t i, int64_t j) const {
    const DF d;
    const V difference = hn::Add(hn::Sub(hn::Set(d, high[i]), hn::Load(d, high + j)),
                                 hn::Sub(hn::Set(d, low[i]), hn::Load(d, low + j)));
    return exp2_product(d, difference, hn::Set(d, 1.0f));
  }
  // and for a vector of i and one j.
  HWY_INLINE V since(int64_t i, int64_t j) const {
    const DF d;
    const V difference = hn::Add(hn::Sub(hn::Load(d, high + i), hn::Set(d, high[j])),
                                 hn::Sub(hn::Load(d, low + i), hn::Set(d, low[j])));
    return exp2_product(d, difference, hn::Set(d, 1.0f));
  }
};

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
  float* h;             // [N_pad, P_pad], where the state's own rows do not fit the tiles

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
template <int W>
HWY_INLINE void step_columns(int64_t N, int64_t P, const float* HWY_RESTRICT B, const float* HWY_RESTRICT C,
                             V decay, V dt, const float* x, const float* D, float* HWY_RESTRICT h, float* y) {
  const DF d;
  V dt_x[W], sum[W];
  for (int w = 0; w < W; ++w) {
    dt_x[w] = hn::Mul(dt, hn::LoadU(d, x + w * lanes()));
    sum[w] = hn::Zero(d);
  }
  for (int64_t n = 0; n < N; ++n) {
    const V b = hn::Set(d, B[n]), c = hn::Set(d, C[n]);
    for (int w = 0; w < W; ++w) {
      float* const p = h + n * P + w * lanes();
      const V next = hn::MulAdd(decay, hn::LoadU(d, p), hn::Mul(dt_x[w], b));
      hn::StoreU(next, d, p);
      sum[w] = hn::MulAdd(c, next, sum[w]);
    }
  }
  for (int w = 0; w < W; ++w) {
    if (D) sum[w] = hn::MulAdd(hn::LoadU(d, D + w * lanes()), hn::LoadU(d, x + w * lanes()), sum[w]);
    hn::StoreU(sum[w], d, y + w * lanes());
  }
}

// The columns that fill no vector, by way of padded copies.
void step_tail(const SsdOperands& s, const float* B, const float* C, V decay, V dt, const float* x,
               const HeadScratch& scratch, int64_t p, float* h, float* y) {
  const int64_t count = s.P - p;
  HWY_ALIGN float padded_x[hn::MaxLanes(DF())] = {}, padded_y[hn::MaxLanes(DF())];
  std::copy_n(x + p, count, padded_x);
  for (int64_t n = 0; n < s.N; ++n) {
    float* const row = scratch.h + n * lanes();
    std::copy_n(h + n * s.P + p, count, row);
    std::fill(row + count, row + lanes(), 0.0f);
  }
  const float* const D = s.D ? scratch.D + p : nullptr;
  step_columns<1>(s.N, lanes(), B, C, decay, dt, padded_x, D, scratch.h, padded_y);
  for (int64_t n = 0; n < s.N; ++n) std::copy_n(scratch.h + n * lanes(), count, h + n * s.P + p);
  std::copy_n(padded_y, count, y + p);
}

void step(const SsdOperands& s, int64_t head, int64_t t, const HeadScratch& scratch, float* h) {
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
void pad_state(const SsdOperands& s, const float* state, float* h) {
  std::fill_n(h, s.N_pad * s.P_pad, 0.0f);
  for (int64_t n = 0; n < s.N; ++n) std::copy_n(state + n * s.P, s.P, h + n * s.P_pad);
}
void unpad_state(const SsdOperands& s, const float* h, float* state) {
  for (int64_t n = 0; n < s.N; ++n) std::copy_n(h + n * s.P_pad, s.P, state + n * s.P);
}

// A head's walk over the chunks of one sequence that a round holds; `state` [N, P].
void ssd_head(const SsdOperands& s, std::span<const SsdChunkWork> chunks, int64_t head, float* state) {
  const int64_t g = head / (s.H / s.G);
  const HeadScratch scratch = HeadScratch::allocate(s);
  for (int64_t p = 0; s.D && p < s.P_pad; ++p) {
    scratch.D[p] = p >= s.P ? 0.0f : s.D_per_channel ? s.D[head * s.P + p] : s.D[head];
  }
  const bool fits = s.P == s.P_pad && s.N == s.N_pad;
  float* const h = fits ? state : scratch.h;
  Decays decays;
  for (const SsdChunkWork& chunk : chunks) {
    if (chunk.length == 1) {
      step(s, head, chunk.begin, scratch, state);
      continue;
    }
    decays.compute(s, head, chunk.begin, chunk.length);
    attention(chunk.BCt(s, g), decays, chunk.length, scratch.Mt);
    load_x(s, head, chunk, decays, scratch);
    if (!fits) pad_state(s, state, h);
    chunk_scan(s, head, chunk, chunk.Ct(s, g), decays, scratch, h);
    chunk_state(s, chunk.length, chunk.B(s, g), decays, scratch, h);
    if (!fits) unpad_state(s, h, state);
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

void run_round(const SsdOperands& s, const Round& round, float* state) {
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
      (s, std::span(chunks).subspan(run.first, run.last - run.first), i % s.H,
       state + (run.slot * s.H + i % s.H) * s.N * s.P);
    }
  });
}

SsdOperands operands(const SsdScanArgs& args, const Tensor& y) {
  const auto rows = [](const Tensor& x) { return SsdRows{x.data<float>(), x.stride(0)}; };
  const auto data = [](const Tensor& x) { return x.defined() ? x.data<float>() : nullptr; };
  SsdOperands s{};
  s.H = args.A.size(0), s.P = args.x.size(1) / s.H;
  s.G = args.groups, s.N = args.B.size(1) / s.G;
  s.P_pad = (s.P + 15) / 16 * 16, s.N_pad = (s.N + 3) / 4 * 4;
  s.x = rows(args.x), s.dt = rows(args.dt), s.B = rows(args.B), s.C = rows(args.C);
  s.A = data(args.A), s.D = data(args.D), s.dt_bias = data(args.dt_bias);
  s.D_per_channel = args.D.defined() && args.D.numel() != s.H;
  s.dt_softplus = args.dt_softplus, s.dt_min = args.dt_min, s.dt_max = args.dt_max;
  s.y = data(y);
  return s;
}

}  // namespace

void cpu::ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                   const Tensor& y) {
  const SsdOperands s = operands(args, y);
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
        run_round(s, round, h.data<float>());
        round.clear();
      }
      float* const memory =
          length > 1 ? shared + static_cast<int64_t>(round.shared.size()) * floats : nullptr;
      round.add(slot, begin != batch.offset(b), {begin, length, memory});
    }
  }
  run_round(s, round, h.data<float>());
}

}  // namespace ssm
#endif
