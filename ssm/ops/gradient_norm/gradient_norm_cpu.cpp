#include "ssm/ops/gradient_norm/gradient_norm_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ssm/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/gradient_norm/gradient_norm_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

double sum_of_squares(const float* x, int64_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0;
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const auto a = hn::PromoteTo(d, hn::LoadU(half, x + i)),
               b = hn::PromoteTo(d, hn::LoadU(half, x + i + lanes));
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(sum_of_squares);

namespace cpu {

void gradient_norm(std::span<const Tensor> gradients, float max_norm, const GradientNorm& result) {
  constexpr int64_t kBlock = 1 << 16;
  double total = 0;
  std::vector<double> sums;
  for (const Tensor& g : gradients) {
    const int64_t n = g.numel(), blocks = (n + kBlock - 1) / kBlock;
    sums.assign(static_cast<size_t>(blocks), 0.0);
    parallel_for(blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) {
        sums[static_cast<size_t>(b)] = HWY_DYNAMIC_DISPATCH(sum_of_squares)(g.data<float>() + b * kBlock,
                                                                            std::min(kBlock, n - b * kBlock));
      }
    });
    for (const double s : sums) total += s;
  }
  const double norm = std::sqrt(total);
  result.norm.data<float>()[0] = static_cast<float>(norm);
  const double scale = max_norm == 0 || max_norm / (norm + 1e-6) > 1 ? 1 : max_norm / (norm + 1e-6);
  result.scale.data<float>()[0] = std::isfinite(norm) ? static_cast<float>(scale) : NAN;
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
