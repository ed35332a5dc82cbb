#include "ssm/ops/adamw/adamw_cpu.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/ops/adamw/adamw_factors.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/adamw/adamw_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

void adamw_kernel(const AdamWFactors& f, float scale, float* HWY_RESTRICT p, const float* HWY_RESTRICT g,
                  float* HWY_RESTRICT m, float* HWY_RESTRICT v, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; i += lanes) {
    const auto count = static_cast<size_t>(std::min(lanes, n - i));
    const auto gv = hn::Mul(load_n_f32(d, g + i, count), hn::Set(d, scale));
    const auto mv =
        hn::MulAdd(hn::Set(d, f.rest1), gv, hn::Mul(hn::Set(d, f.beta1), load_n_f32(d, m + i, count)));
    const auto vv = hn::MulAdd(hn::Mul(hn::Set(d, f.rest2), gv), gv,
                               hn::Mul(hn::Set(d, f.beta2), load_n_f32(d, v + i, count)));
    store_n_f32(d, mv, m + i, count);
    store_n_f32(d, vv, v + i, count);
    const auto size = hn::MulAdd(hn::Sqrt(vv), hn::Set(d, f.correction), hn::Set(d, f.eps));
    const auto step = hn::Div(hn::Mul(hn::Set(d, f.rate), mv), size);
    const auto pv = hn::Mul(load_n_f32(d, p + i, count), hn::Set(d, f.decay));
    store_n_f32(d, hn::Sub(pv, step), p + i, count);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(adamw_kernel);

namespace cpu {
namespace {

void step(const AdamWFactors& factors, float scale, const AdamWParameter& a) {
  constexpr int64_t kPiece = 4096;  // what the caches keep for the rounding after it
  const int64_t size = a.p.numel();
  parallel_for((size + kPiece - 1) / kPiece, 4, [&](int64_t first, int64_t last) {
    for (int64_t begin = first * kPiece; begin < std::min(size, last * kPiece); begin += kPiece) {
      const int64_t n = std::min(kPiece, size - begin);
      float* const p = a.p.data<float>() + begin;
      HWY_DYNAMIC_DISPATCH(adamw_kernel)
      (factors, scale, p, a.g.data<float>() + begin, a.m.data<float>() + begin, a.v.data<float>() + begin, n);
      if (!a.narrow.defined()) continue;
      dispatch_float(a.narrow.dtype(), "adamw", [&](auto zero) {
        using T = decltype(zero);
        T* const to = a.narrow.data<T>() + begin;
        for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(p[i]);
      });
    }
  });
}

}  // namespace

void adamw(const AdamW& options, std::span<const AdamWParameter> parameters, const Tensor& grad_scale) {
  const float scale = grad_scale.defined() ? grad_scale.data<float>()[0] : 1.0f;
  if (!std::isfinite(scale)) return;
  const AdamWFactors factors = factors_of(options);
  for (const AdamWParameter& parameter : parameters) step(factors, scale, parameter);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
