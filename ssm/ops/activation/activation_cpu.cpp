#include "ssm/ops/activation/activation_cpu.h"

#include <algorithm>

#include "ssm/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/activation/activation_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_ACTIVATION_ROW
#define SSM_ACTIVATION_ROW
namespace ssm {
// One row of each; what a kernel has no use for, or is not wanted, is null.
struct ActivationRow {
  const float *x, *z, *dy;
  float *y, *dx, *dz;
  size_t M;
};
}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// 1 - erf(z) for z >= 0, to 1.2e-7 of itself (Press et al., Numerical Recipes, "erfcc").
template <class D, class V = hn::Vec<D>>
HWY_INLINE V erfc_f32(D d, V z) {
  constexpr float kTerms[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                              0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  const V t = hn::Div(hn::Set(d, 1.0f), hn::MulAdd(z, hn::Set(d, 0.5f), hn::Set(d, 1.0f)));
  V p = hn::Set(d, 0.17087277f);
  for (const float term : kTerms) p = hn::MulAdd(p, t, hn::Set(d, term));
  return hn::Mul(t, exp_f32(d, hn::NegMulAdd(z, z, p)));
}

// Phi(x) = erfc(-x / sqrt(2)) / 2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V normal_distribution(D d, V x) {
  const V half =
      hn::Mul(hn::Set(d, 0.5f), erfc_f32(d, hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678118654752f))));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), half, hn::Sub(hn::Set(d, 1.0f), half));
}

// Calls f(d, i, n) along a row.
template <class F>
HWY_INLINE void for_vectors(size_t M, const F& f) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < M; i += hn::Lanes(d)) f(d, i, std::min(hn::Lanes(d), M - i));
}

void gelu_kernel(const ActivationRow& a) {
  for_vectors(a.M, [&](auto d, size_t i, size_t n) HWY_ATTR {
    const auto x = load_n_f32(d, a.x + i, n);
    store_n_f32(d, hn::Mul(x, normal_distribution(d, x)), a.y + i, n);
  });
}

void gelu_backward_kernel(const ActivationRow& a) {
  for_vectors(a.M, [&](auto d, size_t i, size_t n) HWY_ATTR {
    const auto x = load_n_f32(d, a.x + i, n);
    const auto density =
        hn::Mul(hn::Set(d, 0.39894228040143268f), exp_f32(d, hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f))));
    const auto slope = hn::MulAdd(x, density, normal_distribution(d, x));
    store_n_f32(d, hn::Mul(load_n_f32(d, a.dy + i, n), slope), a.dx + i, n);
  });
}

void gated_silu_kernel(const ActivationRow& a) {
  for_vectors(a.M, [&](auto d, size_t i, size_t n) HWY_ATTR {
    store_n_f32(d, hn::Mul(load_n_f32(d, a.x + i, n), silu_f32(d, load_n_f32(d, a.z + i, n))), a.y + i, n);
  });
}

void gated_silu_backward_kernel(const ActivationRow& a) {
  for_vectors(a.M, [&](auto d, size_t i, size_t n) HWY_ATTR {
    const auto x = load_n_f32(d, a.x + i, n), z = load_n_f32(d, a.z + i, n), dy = load_n_f32(d, a.dy + i, n);
    if (a.dx) store_n_f32(d, hn::Mul(dy, silu_f32(d, z)), a.dx + i, n);
    if (a.dz) store_n_f32(d, hn::Mul(dy, hn::Mul(x, silu_slope_f32(d, z))), a.dz + i, n);
  });
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(gelu_kernel);
HWY_EXPORT(gelu_backward_kernel);
HWY_EXPORT(gated_silu_kernel);
HWY_EXPORT(gated_silu_backward_kernel);

namespace cpu {
namespace {

float* row_of(const Tensor& t, int64_t i) {
  return t.defined() ? t.data<float>() + i * t.stride(0) : nullptr;
}

// Calls kernel(row) for every row of tensors [T, M], undefined ones among them.
template <class Kernel>
void for_rows(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& y, const Tensor& dx,
              const Tensor& dz, const Kernel& kernel) {
  const int64_t M = x.size(1), grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, M));
  parallel_for(x.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernel(ActivationRow{row_of(x, t), row_of(z, t), row_of(dy, t), row_of(y, t), row_of(dx, t),
                           row_of(dz, t), static_cast<size_t>(M)});
    }
  });
}

}  // namespace

void gelu(const Tensor& x, const Tensor& y) {
  for_rows(x, {}, {}, y, {}, {}, [](const ActivationRow& a) { HWY_DYNAMIC_DISPATCH(gelu_kernel)(a); });
}

void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) {
  for_rows(x, {}, dy, {}, dx, {}, [](const ActivationRow& a) {
    HWY_DYNAMIC_DISPATCH(gelu_backward_kernel)(a);
  });
}

void gated_silu(const Tensor& x, const Tensor& z, const Tensor& y) {
  for_rows(x, z, {}, y, {}, {}, [](const ActivationRow& a) { HWY_DYNAMIC_DISPATCH(gated_silu_kernel)(a); });
}

void gated_silu_backward(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& dx,
                         const Tensor& dz) {
  for_rows(x, z, dy, {}, dx, dz, [](const ActivationRow& a) {
    HWY_DYNAMIC_DISPATCH(gated_silu_backward_kernel)(a);
  });
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
