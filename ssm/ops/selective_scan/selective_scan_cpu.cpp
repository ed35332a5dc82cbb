// A vector is a run of channels; each thread walks the time of its (sequence, block of channels) with the
// block's states in the L1 cache. The cost is exp: N of them a channel and token.
#include "ssm/ops/selective_scan/selective_scan_cpu.h"

#include <algorithm>
#include <cstring>

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
  float* state;  // [S, N, E] or null
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

// h = exp(delta A) h + delta B u over the N states of a vector of channels; returns the sum of C h.
// kInRange: every |delta2 A| is below kExp2Limit; the bits are those of the general case.
template <bool kInRange>
HWY_INLINE V advance_states(int64_t N, V delta2, V delta_u, const float* HWY_RESTRICT A, int64_t A_stride,
                            const float* HWY_RESTRICT B, const float* HWY_RESTRICT C, float* HWY_RESTRICT h,
                            int64_t h_stride) {
  const D d;
  V sum = hn::Zero(d);
  for (int64_t n = 0; n < N; ++n) {
    const V a = hn::LoadU(d, A + n * A_stride);
    const V decay = kInRange ? exp2_product_in_range(d, delta2, a) : exp2_product(d, delta2, a);
    const V hn_ = hn::MulAdd(decay, hn::LoadU(d, h + n * h_stride), hn::Mul(delta_u, hn::Set(d, B[n])));
    hn::StoreU(hn_, d, h + n * h_stride);
    sum = hn::MulAdd(hn_, hn::Set(d, C[n]), sum);
  }
  return sum;
}

// One token of a vector of channels, e .. e + count. `A_max` is the largest |A| of each channel; null: not
// known.
template <bool kWhole>
HWY_INLINE void advance_token(const SelectiveScanOperands& s, int64_t t, int64_t e, int64_t count,
                              const float* A, int64_t A_stride, const float* A_max, float* h,
                              int64_t h_stride) {
  const D d;
  const V u = load<kWhole>(s.u.at(t) + e, count);
  V delta = load<kWhole>(s.delta.at(t) + e, count);
  if (s.delta_bias) delta = hn::Add(delta, load<kWhole>(s.delta_bias + e, count));
  if (s.delta_softplus) delta = softplus_f32(d, delta);
  const V delta2 = hn::Mul(delta, hn::Set(d, kLog2E));
  const V delta_u = hn::Mul(delta, u);
  const bool in_range =
      A_max && hn::AllTrue(d, hn::Lt(hn::Abs(hn::Mul(delta2, hn::LoadU(d, A_max))), hn::Set(d, kExp2Limit)));
  V y = in_range
            ? advance_states<true>(s.N, delta2, delta_u, A, A_stride, s.B.at(t), s.C.at(t), h, h_stride)
            : advance_states<false>(s.N, delta2, delta_u, A, A_stride, s.B.at(t), s.C.at(t), h, h_stride);
  if (s.D) y = hn::MulAdd(u, load<kWhole>(s.D + e, count), y);
  if (s.z.data) y = hn::Mul(y, silu_f32(d, load<kWhole>(s.z.at(t) + e, count)));
  store<kWhole>(y, s.y + t * s.E + e, count);
}

// A block's rows lie a whole [T, E] row apart, often in another page each: no hardware prefetcher follows.
constexpr int64_t kPrefetchTokens = 6;
HWY_INLINE void prefetch_rows(const SelectiveScanOperands& s, int64_t t, int64_t e0, int64_t width) {
  constexpr int64_t kLine = 16;  // floats
  for (int64_t e = e0; e < e0 + width; e += kLine) {
    hwy::Prefetch(s.u.at(t) + e);
    hwy::Prefetch(s.delta.at(t) + e);
    if (s.z.data) hwy::Prefetch(s.z.at(t) + e);
    hwy::Prefetch(s.y + t * s.E + e);
  }
}

// Tokens [begin, end) of one sequence, channels [e0, e0 + width), with states and A in scratch:
// A [N, padded], A_max [padded], h [N, padded], padded the width in whole vectors.
void scan_block(const SelectiveScanOperands& s, int64_t begin, int64_t end, float* state, int64_t e0,
                int64_t width) {
  const D d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t padded = (width + lanes - 1) / lanes * lanes, whole = width / lanes * lanes;
  float* const A = cpu::thread_scratch((2 * s.N + 1) * padded);
  float* const h = A + s.N * padded;
  float* const A_max = h + s.N * padded;
  std::fill(A, A_max + padded, 0.0f);
  for (int64_t n = 0; n < s.N; ++n) {
    std::copy_n(s.A + n * s.A_stride + e0, width, A + n * padded);
    if (state) std::copy_n(state + n * s.E + e0, width, h + n * padded);
    for (int64_t i = 0; i < width; ++i) A_max[i] = std::max(A_max[i], std::abs(A[n * padded + i]));
  }
  for (int64_t t = begin; t < end; ++t) {
    prefetch_rows(s, std::min(t + kPrefetchTokens, end - 1), e0, width);
    for (int64_t i = 0; i < whole; i += lanes) {
      advance_token<true>(s, t, e0 + i, lanes, A + i, padded, A_max + i, h + i, padded);
    }
    if (whole < width) {
      advance_token<false>(s, t, e0 + whole, width - whole, A + whole, padded, A_max + whole, h + whole,
                           padded);
    }
  }
  for (int64_t n = 0; state && n < s.N; ++n) std::copy_n(h + n * padded, width, state + n * s.E + e0);
}

// One token: the states are read and written once, where they lie.
void step_block(const SelectiveScanOperands& s, int64_t t, float* state, int64_t e0, int64_t width) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  const int64_t whole = width / lanes * lanes;
  for (int64_t e = e0; e < e0 + whole; e += lanes) {
    advance_token<true>(s, t, e, lanes, s.A + e, s.A_stride, nullptr, state + e, s.E);
  }
  if (whole < width) scan_block(s, t, t + 1, state, e0 + whole, width - whole);
}

void selective_scan_block(const SelectiveScanOperands& s, const SequenceBatch& batch, int64_t b, int64_t e0,
                          int64_t width) {
  float* const state = s.state ? s.state + batch.slot(b) * s.N * s.E : nullptr;
  if (state && batch.length(b) == 1) {
    step_block(s, batch.offset(b), state, e0, width);
  } else {
    scan_block(s, batch.offset(b), batch.offset(b + 1), state, e0, width);
  }
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
                                data(state),
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
