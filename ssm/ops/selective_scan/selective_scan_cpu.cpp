// A vector is a run of channels; each thread walks the time of its (sequence, block of channels) with the
// block's states in the L1 cache. The cost is exp: N of them a channel and token.
#include "ssm/ops/selective_scan/selective_scan_cpu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/selective_scan/selective_scan_cpu.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_SELECTIVE_SCAN_ONCE
#define SSM_SELECTIVE_SCAN_ONCE
namespace ssm {

struct Rows {  // of a [T, ...] operand
  const float* data = nullptr;
  int64_t stride = 0;
  const float* at(int64_t t) const { return data + t * stride; }
};

struct SelectiveScanOperands {
  int64_t E, N;
  Rows u, delta, z, B, C;  // z.data is null without a gate
  const float* A;          // [N, E], rows A_stride apart
  int64_t A_stride;
  const float *D, *delta_bias;  // or null
  bool delta_softplus;
  Tensor state;  // [S, N, E] or undefined
  float* y;      // [T, E]
};

}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// A partial vector goes through a padded buffer: the same arithmetic on every lane, and no access outside the
// rows.
template <bool kWhole>
HWY_INLINE V load(const float* p, int64_t count) {
  const D d;
  if constexpr (kWhole) return hn::LoadU(d, p);
  HWY_ALIGN float buffer[hn::MaxLanes(d)] = {};
  std::memcpy(buffer, p, static_cast<size_t>(count) * sizeof(float));
  return hn::Load(d, buffer);
}

template <bool kWhole>
HWY_INLINE void store(V v, float* p, int64_t count) {
  const D d;
  if constexpr (kWhole) {
    hn::StoreU(v, d, p);
  } else {
    HWY_ALIGN float buffer[hn::MaxLanes(d)];
    hn::Store(v, d, buffer);
    std::memcpy(p, buffer, static_cast<size_t>(count) * sizeof(float));
  }
}

// How far ahead states are fetched where they come from memory: rows of few lines each, too short for the
// hardware's prefetcher.
constexpr int64_t kStatesAhead = 32;

// h = exp(delta A) h + delta B u over the N states of a vector of channels; returns the sum of C h.
// kInRange: every |delta2 A| is below kExp2Limit; the bits are those of the general case.
template <bool kInRange, bool kFromMemory, class State>
HWY_INLINE V advance_states(int64_t N, V delta2, V delta_u, const float* HWY_RESTRICT A, int64_t A_stride,
                            const float* HWY_RESTRICT B, const float* HWY_RESTRICT C, State* HWY_RESTRICT h,
                            int64_t h_stride) {
  const D d;
  V sum = hn::Zero(d);
  for (int64_t n = 0; n < N; ++n) {
    if constexpr (kFromMemory) hwy::Prefetch(h + n * h_stride + kStatesAhead);
    const V a = hn::LoadU(d, A + n * A_stride);
    const V decay = kInRange ? exp2_product_in_range(d, delta2, a) : exp2_product(d, delta2, a);
    const V hn_ = hn::MulAdd(decay, load_f32(d, h + n * h_stride), hn::Mul(delta_u, hn::Set(d, B[n])));
    store_f32(d, hn_, h + n * h_stride);
    sum = hn::MulAdd(hn_, hn::Set(d, C[n]), sum);
  }
  return sum;
}

// What a token's channels take into the recurrence.
struct Step {
  V delta2;   // delta' log2(e)
  V delta_u;  // delta' u
};

template <bool kWhole>
HWY_INLINE Step load_step(const SelectiveScanOperands& s, int64_t t, int64_t e, int64_t count) {
  const D d;
  V delta = load<kWhole>(s.delta.at(t) + e, count);
  if (s.delta_bias) delta = hn::Add(delta, load<kWhole>(s.delta_bias + e, count));
  if (s.delta_softplus) delta = softplus_f32(d, delta);
  return {hn::Mul(delta, hn::Set(d, kLog2E)), hn::Mul(delta, load<kWhole>(s.u.at(t) + e, count))};
}

// y = (sum + D u) silu(z)
template <bool kWhole>
HWY_INLINE void finish(const SelectiveScanOperands& s, int64_t t, int64_t e, int64_t count, V sum) {
  if (s.D) sum = hn::MulAdd(load<kWhole>(s.u.at(t) + e, count), load<kWhole>(s.D + e, count), sum);
  if (s.z.data) sum = hn::Mul(sum, silu_f32(D(), load<kWhole>(s.z.at(t) + e, count)));
  store<kWhole>(sum, s.y + t * s.E + e, count);
}

// A block's rows lie a whole [T, E] row apart, often in another page each: no hardware prefetcher follows.
HWY_INLINE void prefetch_token(const SelectiveScanOperands& s, int64_t t, int64_t e) {
  hwy::Prefetch(s.u.at(t) + e);
  hwy::Prefetch(s.delta.at(t) + e);
  if (s.z.data) hwy::Prefetch(s.z.at(t) + e);
  hwy::Prefetch(s.y + t * s.E + e);
}

// A block of channels: its states and A, and the steps and sums of a few tokens, in rows of `padded`, the
// width in whole vectors. Softplus, recurrence and gate run as three passes over those tokens: each is a
// long chain of operations on one vector, and hides its latency behind the other vectors only.
constexpr int64_t kTileTokens = 8;
struct Block {
  int64_t e0, width, whole, padded;
  float *A, *h;                   // [N, padded]
  float *A_max, *delta_max;       // [padded]: largest |A|; largest |delta2| of the tile
  float *delta2, *delta_u, *sum;  // [kTileTokens, padded]

  Block(const SelectiveScanOperands& s, int64_t first, int64_t channels) : e0(first), width(channels) {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
    whole = width / lanes * lanes;
    padded = (width + lanes - 1) / lanes * lanes;
    float* p = cpu::thread_scratch((2 * s.N + 2 + 3 * kTileTokens) * padded);
    for (float** rows : {&A, &h}) *rows = p, p += s.N * padded;
    for (float** row : {&A_max, &delta_max}) *row = p, p += padded;
    for (float** rows : {&delta2, &delta_u, &sum}) *rows = p, p += kTileTokens * padded;
  }

  // Calls body(first channel, count, whole?) for each vector of the block.
  template <class Body>
  HWY_INLINE void for_each_vector(Body&& body) const {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
    for (int64_t i = 0; i < whole; i += lanes) body(i, lanes, std::true_type());
    if (whole < width) body(whole, width - whole, std::false_type());
  }
};

template <class State>
void load_block(const SelectiveScanOperands& s, const State* state, const Block& block) {
  std::fill_n(block.A, (2 * s.N + 1) * block.padded, 0.0f);
  for (int64_t n = 0; n < s.N; ++n) {
    float* const A = block.A + n * block.padded;
    std::copy_n(s.A + n * s.A_stride + block.e0, block.width, A);
    if (state) convert_row(state + n * s.E + block.e0, block.width, block.h + n * block.padded);
    for (int64_t i = 0; i < block.width; ++i) block.A_max[i] = std::max(block.A_max[i], std::abs(A[i]));
  }
}

void load_steps(const SelectiveScanOperands& s, const Block& block, int64_t t0, int64_t tokens) {
  const D d;
  std::fill_n(block.delta_max, block.padded, 0.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    block.for_each_vector([&](int64_t i, int64_t count, auto is_whole) HWY_ATTR {
      const Step step = load_step<decltype(is_whole)::value>(s, t0 + t, block.e0 + i, count);
      hn::Store(step.delta2, d, block.delta2 + t * block.padded + i);
      hn::Store(step.delta_u, d, block.delta_u + t * block.padded + i);
      float* const largest = block.delta_max + i;
      hn::Store(hn::Max(hn::Load(d, largest), hn::Abs(step.delta2)), d, largest);
    });
  }
}

void advance_tile(const SelectiveScanOperands& s, const Block& block, int64_t t0, int64_t tokens,
                  int64_t end) {
  const D d;
  const int64_t stride = block.padded;
  block.for_each_vector([&](int64_t i, int64_t, auto) HWY_ATTR {
    const V largest = hn::Mul(hn::Load(d, block.delta_max + i), hn::Load(d, block.A_max + i));
    const bool in_range = hn::AllTrue(d, hn::Lt(largest, hn::Set(d, kExp2Limit)));
    for (int64_t t = 0; t < tokens; ++t) {
      prefetch_token(s, std::min(t0 + kTileTokens + t, end - 1), block.e0 + i);
      const V delta2 = hn::Load(d, block.delta2 + t * stride + i);
      const V delta_u = hn::Load(d, block.delta_u + t * stride + i);
      const float* const B = s.B.at(t0 + t);
      const float* const C = s.C.at(t0 + t);
      const V sum = in_range ? advance_states<true, false>(s.N, delta2, delta_u, block.A + i, stride, B, C,
                                                           block.h + i, stride)
                             : advance_states<false, false>(s.N, delta2, delta_u, block.A + i, stride, B, C,
                                                            block.h + i, stride);
      hn::Store(sum, d, block.sum + t * stride + i);
    }
  });
}

void finish_tile(const SelectiveScanOperands& s, const Block& block, int64_t t0, int64_t tokens) {
  for (int64_t t = 0; t < tokens; ++t) {
    block.for_each_vector([&](int64_t i, int64_t count, auto is_whole) HWY_ATTR {
      finish<decltype(is_whole)::value>(s, t0 + t, block.e0 + i, count,
                                        hn::Load(D(), block.sum + t * block.padded + i));
    });
  }
}

// Tokens [begin, end) of one sequence. A narrow state is rounded once, at the end.
template <class State>
void scan_block(const SelectiveScanOperands& s, int64_t begin, int64_t end, State* state, int64_t e0,
                int64_t width) {
  const Block block(s, e0, width);
  load_block(s, state, block);
  for (int64_t t0 = begin; t0 < end; t0 += kTileTokens) {
    const int64_t tokens = std::min(kTileTokens, end - t0);
    load_steps(s, block, t0, tokens);
    advance_tile(s, block, t0, tokens, end);
    finish_tile(s, block, t0, tokens);
  }
  for (int64_t n = 0; state && n < s.N; ++n) {
    convert_row(block.h + n * block.padded, width, state + n * s.E + e0);
  }
}

// One token: the states are read and written once, where they lie.
template <class State>
void step_block(const SelectiveScanOperands& s, int64_t t, State* state, int64_t e0, int64_t width) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t whole = width / lanes * lanes;
  for (int64_t e = e0; e < e0 + whole; e += lanes) {
    const Step step = load_step<true>(s, t, e, lanes);
    const float* const A = s.A + e;
    V A_max = hn::Zero(d);
    for (int64_t n = 0; n < s.N; ++n) A_max = hn::Max(A_max, hn::Abs(hn::LoadU(d, A + n * s.A_stride)));
    const bool in_range =
        hn::AllTrue(d, hn::Lt(hn::Mul(hn::Abs(step.delta2), A_max), hn::Set(d, kExp2Limit)));
    const V sum = in_range ? advance_states<true, true>(s.N, step.delta2, step.delta_u, A, s.A_stride,
                                                        s.B.at(t), s.C.at(t), state + e, s.E)
                           : advance_states<false, true>(s.N, step.delta2, step.delta_u, A, s.A_stride,
                                                         s.B.at(t), s.C.at(t), state + e, s.E);
    finish<true>(s, t, e, lanes, sum);
  }
  if (whole < width) scan_block(s, t, t + 1, state, e0 + whole, width - whole);
}

template <class State>
void block_of(const SelectiveScanOperands& s, const SequenceBatch& batch, int64_t b, int64_t e0,
              int64_t width) {
  State* const state = s.state.defined() ? s.state.data<State>() + batch.slot(b) * s.N * s.E : nullptr;
  if (state && batch.length(b) == 1) {
    step_block(s, batch.offset(b), state, e0, width);
  } else {
    scan_block(s, batch.offset(b), batch.offset(b + 1), state, e0, width);
  }
}

void selective_scan_block(const SelectiveScanOperands& s, const SequenceBatch& batch, int64_t b, int64_t e0,
                          int64_t width) {
  const DType dtype = s.state.defined() ? s.state.dtype() : DType::f32;
  if (dtype == DType::bf16) return block_of<BFloat16>(s, batch, b, e0, width);
  if (dtype == DType::f16) return block_of<Float16>(s, batch, b, e0, width);
  block_of<float>(s, batch, b, e0, width);
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(selective_scan_block);

void cpu::selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                         const Tensor& y) {
  const auto rows = [](const Tensor& x) { return x.defined() ? Rows{x.data<float>(), x.stride(0)} : Rows{}; };
  const auto data = [](const Tensor& x) { return x.defined() ? x.data<float>() : nullptr; };
  const int64_t E = args.A.size(0), N = args.A.size(1);
  // Channels must lie side by side.
  const Tensor A = args.A.stride(0) == 1 ? args.A.transpose(0, 1) : args.A.transpose(0, 1).clone();
  const SelectiveScanOperands s{E,
                                N,
                                rows(args.u),
                                rows(args.delta),
                                rows(args.z),
                                rows(args.B),
                                rows(args.C),
                                data(A),
                                A.stride(0),
                                data(args.D),
                                data(args.delta_bias),
                                args.delta_softplus,
                                state,
                                data(y)};
  // 64 channels are a cache line for each of four AVX-512 vectors, and with N = 16 a quarter of the L1 cache.
  const int64_t width = N <= 32 ? 64 : 16;
  const int64_t blocks = (E + width - 1) / width;
  parallel_for(batch.size() * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t e0 = i % blocks * width;
      HWY_DYNAMIC_DISPATCH(selective_scan_block)(s, batch, i / blocks, e0, std::min(width, E - e0));
    }
  });
}

}  // namespace ssm
#endif
