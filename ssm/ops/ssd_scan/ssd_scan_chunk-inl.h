// What the forward and the backward of ssd_scan share: a chunk's products for all heads of a group, and the
// decays of one head.
#if defined(SSM_OPS_SSD_SCAN_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SSD_SCAN_CHUNK_INL_H_
#undef SSM_OPS_SSD_SCAN_CHUNK_INL_H_
#else
#define SSM_OPS_SSD_SCAN_CHUNK_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/simd/matmul-inl.h"
#include "ssm/ops/ssd_scan/ssd_scan_operands.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;
using V = hn::Vec<DF>;

// bmm: the chunk's B, C^T and (C B^T)^T, rows j and columns i zero past its length.
HWY_INLINE void chunk_bmm(const SsdOperands& s, const SsdChunkWork& chunk, int64_t g) {
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
  std::fill_n(Ct + s.N * kL, (s.N_pad - s.N) * kL, 0.0f);
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

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
