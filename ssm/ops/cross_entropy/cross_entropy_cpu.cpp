#include "ssm/ops/cross_entropy/cross_entropy_cpu.h"

#include <cmath>

#include "ssm/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/cross_entropy/cross_entropy_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// sum_i exp(x[i] - maximum)
double sum_exp(const float* x, int64_t n, float maximum) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto m = hn::Set(d, maximum);
  double total = 0;
  int64_t i = 0;
  while (i + lanes <= n) {  // f32 partial sums over short runs only
    auto sum = hn::Zero(d);
    for (const int64_t end = std::min(n - lanes, i + 64 * lanes); i <= end; i += lanes) {
      sum = hn::Add(sum, exp_f32(d, hn::Sub(hn::LoadU(d, x + i), m)));
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  for (; i < n; ++i) total += std::exp(static_cast<double>(x[i]) - maximum);
  return total;
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(sum_exp);

namespace cpu {

void cross_entropy(const Tensor& logits, const Tensor& targets, int64_t vocab, const CrossEntropy& result) {
  parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = logits.data<float>() + t * logits.stride(0);
      int64_t best = -1;
      for (int64_t v = 0; v < vocab; ++v) {
        if (std::isfinite(row[v]) && (best < 0 || row[v] > row[best])) best = v;
      }
      SSM_CHECK(best >= 0, "cross_entropy: row {} has no finite score", t);
      const int32_t target = targets.data<int32_t>()[t];
      const double normalizer = row[best] + std::log(HWY_DYNAMIC_DISPATCH(sum_exp)(row, vocab, row[best]));
      result.argmax.data<int32_t>()[t] = static_cast<int32_t>(best);
      result.nll.data<float>()[t] = target < 0 ? 0.0f : static_cast<float>(normalizer - row[target]);
    }
  });
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
