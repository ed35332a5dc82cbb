#include "ssm/ops/sampling/sampling_simd.h"

#include <algorithm>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/sampling/sampling_simd.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// The last scores of a row, -inf after them.
template <class D>
HWY_INLINE hn::Vec<D> load_scores(D d, const float* p, size_t n) {
  if (HWY_LIKELY(n >= hn::Lanes(d))) return hn::LoadU(d, p);
  const auto v = load_tail_f32(d, p, n);
  return hn::IfThenElse(hn::FirstN(d, n), v, hn::Set(d, -std::numeric_limits<float>::infinity()));
}

// A lane of 16 vectors is a set; a comparison with NaN is false, so NaN is never taken.
cpu::Highest find_highest(const float* scores, size_t n, float* maxima) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float highest = kLowest;
  size_t count = 0, found = 0;
  for (size_t begin = 0; begin < n; begin += 16 * N) {
    const size_t end = std::min(n, begin + 16 * N);
    auto best = hn::Set(d, kLowest);
    for (size_t i = begin; i < end; i += N) {
      const auto v = load_scores(d, scores + i, end - i);
      best = hn::IfThenElse(hn::Gt(v, best), v, best);
    }
    hn::StoreU(best, d, maxima + count);
    count += N;
    if (!hn::AllFalse(d, hn::Gt(best, hn::Set(d, highest)))) {
      highest = hn::GetLane(hn::MaxOfLanes(d, best));
      found = begin;
    }
  }
  while (found < n && !(scores[found] == highest)) ++found;
  return {highest, static_cast<int32_t>(found), count};
}

size_t collect(const float* scores, size_t n, float low, float* kept, int32_t* ids) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t N = hn::Lanes(d);
  const auto bound = hn::Set(d, std::max(low, std::numeric_limits<float>::lowest()));
  size_t count = 0;
  for (size_t i = 0; i < n; i += N) {
    const auto v = load_scores(d, scores + i, n - i);
    const auto mask = hn::Ge(v, bound);
    if (hn::AllFalse(d, mask)) continue;
    // Not CompressStore: compressing into memory is microcoded on Zen 4.
    const auto id = hn::Iota(di, static_cast<int32_t>(i));
    hn::StoreU(hn::Compress(id, hn::RebindMask(di, mask)), di, ids + count);
    hn::StoreU(hn::Compress(v, mask), d, kept + count);
    count += hn::CountTrue(d, mask);
  }
  return count;
}

template <class D>
HWY_INLINE hn::Vec<D> weights_of(D d, hn::Vec<D> scores, const cpu::Weighting& w) {
  const auto below = hn::Mul(hn::Sub(scores, hn::Set(d, w.highest)), hn::Set(d, w.inverse_temperature));
  const auto weight = exp_f32(d, below);
  // Le is false for NaN.
  const auto valid = hn::And(hn::Le(below, hn::Zero(d)), hn::Ge(weight, hn::Set(d, w.min_weight)));
  return hn::IfThenElseZero(valid, weight);
}

void weigh(const float* scores, size_t n, const cpu::Weighting& weighting, float* weights) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  for (size_t i = 0; i < n; i += N) {
    store_n_f32(d, weights_of(d, load_scores(d, scores + i, n - i), weighting), weights + i, n - i);
  }
}

// The units of a lane are 2^20 high + low, two 32-bit sums: neither overflows in a block.
void sum_weights(const float* scores, size_t n, const cpu::Weighting& weighting, uint64_t* sums) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const size_t N = hn::Lanes(d);
  const auto scale = hn::Set(d, 0x1p20f);
  HWY_ALIGN int32_t lanes[2 * hn::MaxLanes(d)];
  for (size_t begin = 0; begin < n; begin += cpu::kSumBlock) {
    const size_t end = std::min(n, begin + cpu::kSumBlock);
    auto high = hn::Zero(di), low = high;
    for (size_t i = begin; i < end; i += N) {
      const auto w = hn::Mul(weights_of(d, load_scores(d, scores + i, end - i), weighting), scale);
      const auto whole = hn::ConvertTo(di, w);  // towards zero
      const auto rest = hn::Mul(hn::Sub(w, hn::ConvertTo(d, whole)), scale);
      high = hn::Add(high, whole);
      low = hn::Add(low, hn::ConvertTo(di, rest));
    }
    hn::Store(high, di, lanes);
    hn::Store(low, di, lanes + N);
    uint64_t sum = 0;
    for (size_t j = 0; j < N; ++j) {
      sum += (uint64_t{static_cast<uint32_t>(lanes[j])} << 20) + static_cast<uint32_t>(lanes[N + j]);
    }
    *sums++ = sum;
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(find_highest);
HWY_EXPORT(collect);
HWY_EXPORT(weigh);
HWY_EXPORT(sum_weights);

namespace cpu {

Highest find_highest(const float* scores, size_t n, float* maxima) {
  return HWY_DYNAMIC_DISPATCH(find_highest)(scores, n, maxima);
}
size_t collect(const float* scores, size_t n, float low, float* kept, int32_t* ids) {
  return HWY_DYNAMIC_DISPATCH(collect)(scores, n, low, kept, ids);
}
void weigh(const float* scores, size_t n, const Weighting& weighting, float* weights) {
  HWY_DYNAMIC_DISPATCH(weigh)(scores, n, weighting, weights);
}
void sum_weights(const float* scores, size_t n, const Weighting& weighting, uint64_t* sums) {
  HWY_DYNAMIC_DISPATCH(sum_weights)(scores, n, weighting, sums);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
