// Activations as 16-bit integers (linear_packed.h), once per Highway target.
#if defined(SSM_OPS_LINEAR_PACKED_ROUNDING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_LINEAR_PACKED_ROUNDING_INL_H_
#undef SSM_OPS_LINEAR_PACKED_ROUNDING_INL_H_
#else
#define SSM_OPS_LINEAR_PACKED_ROUNDING_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "ssm/ops/linear/linear_packed.h"
#include "ssm/ops/linear/linear_panel-inl.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

using cpu::kChunk;
using cpu::kChunkRuns;
using cpu::kRun;

// n <= 32 numbers as integers with one step. `sums` are those of the integers 0-15 and 16-31. A number that
// is not finite makes the step NaN, and so every output of the row; runs without a number of 1e-30 are zero.
HWY_INLINE float round_run(const float* x, int64_t n, int16_t* HWY_RESTRICT q, int32_t (&sums)[2]) {
  const D d;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<int16_t, D> d16;
  constexpr int kVectors = kRun / kLanes;
  V v[kVectors];
  V most = hn::Zero(d), bad = hn::Zero(d);
  SSM_UNROLL for (int i = 0; i < kVectors; ++i) {
    const int64_t rest = n - i * kLanes;
    v[i] = rest > 0 ? load_n_f32(d, x + i * kLanes, static_cast<size_t>(rest)) : hn::Zero(d);
    most = hn::Max(most, hn::Abs(v[i]));
    bad = hn::MulAdd(v[i], hn::Zero(d), bad);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most)), nan = hn::GetLane(hn::SumOfLanes(d, bad));
  if (std::isnan(nan)) {
    std::fill_n(q, kRun, int16_t{0});
    sums[0] = sums[1] = 0;
    return nan;
  }
  const bool counts = largest > 1e-30f;  // below, 1 / step overflows
  const V inverse = hn::Set(d, counts ? 32767.0f / largest : 0.0f);
  SSM_UNROLL for (int half = 0; half < 2; ++half) {
    auto sum = hn::Zero(di);
    SSM_UNROLL for (int i = half * kVectors / 2; i < (half + 1) * kVectors / 2; ++i) {
      const auto rounded = hn::NearestInt(hn::Mul(v[i], inverse));
      sum = hn::Add(sum, rounded);
      hn::StoreU(hn::DemoteTo(d16, rounded), d16, q + i * kLanes);
    }
    sums[half] = hn::GetLane(hn::SumOfLanes(di, sum));
  }
  return counts ? largest / 32767.0f : 0.0f;
}

// Rows of x for linear_packed_few-inl.h, which takes four rows of W at a time.
constexpr int kStreams = 4;
constexpr int64_t kLanesOfChunk = kChunkRuns * kStreams;

struct RowsOfX {  // every array [T, chunks, ...]; numbers of a run once for each stream
  int16_t* q;     // [256]
  float* step;    // [4, 8]
  int32_t* sum;   // [kScales, 4, 8] of the integers
  float* total;   // [kScales, 4, 8] of what they stand for
};

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
