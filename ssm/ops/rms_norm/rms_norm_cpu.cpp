#include "ssm/ops/rms_norm/rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/rms_norm/rms_norm_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_RMS_NORM_ARGS
#define SSM_RMS_NORM_ARGS
namespace ssm {
struct RmsNormArgs {
  const float* x;       // [T, M]
  const float* z;       // [T, M], gated only
  float* residual;      // [T, M], add only
  const float* weight;  // [M], or null
  float* y;             // [T, M], contiguous
  int64_t x_stride, z_stride, residual_stride;
  int64_t M, groups;
  float eps;
};
}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// What is normalised: the n next elements of a row from i on. A source is read once, in order, so it may
// store what it computes.
struct Plain {
  const float* x;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, size_t i, size_t n) const {
    return load_n_f32(d, x + i, n);
  }
};
struct Added {
  const float* x;
  float* residual;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, size_t i, size_t n) const {
    const auto sum = hn::Add(load_n_f32(d, residual + i, n), load_n_f32(d, x + i, n));
    store_n_f32(d, sum, residual + i, n);
    return sum;
  }
};
struct Gated {
  const float* x;
  const float* z;
  float* y;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, size_t i, size_t n) const {
    const auto gated = hn::Mul(load_n_f32(d, x + i, n), silu_f32(d, load_n_f32(d, z + i, n)));
    store_n_f32(d, gated, y + i, n);
    return gated;
  }
};

// The order of the sum depends on M alone.
template <class Source>
HWY_INLINE float inverse_rms(const Source& source, size_t M, float eps) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * N <= M; i += 4 * N) {
    const auto v0 = source(d, i, N), v1 = source(d, i + N, N);
    const auto v2 = source(d, i + 2 * N, N), v3 = source(d, i + 3 * N, N);
    s0 = hn::MulAdd(v0, v0, s0);
    s1 = hn::MulAdd(v1, v1, s1);
    s2 = hn::MulAdd(v2, v2, s2);
    s3 = hn::MulAdd(v3, v3, s3);
  }
  for (; i < M; i += N) {
    const auto v = source(d, i, std::min(N, M - i));
    s0 = hn::MulAdd(v, v, s0);
  }
  const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  return 1.0f / std::sqrt(sum / static_cast<float>(M) + eps);
}

HWY_INLINE void scale_row(const float* x, float factor, const float* weight, float* y, size_t M) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  const auto f = hn::Set(d, factor);
  for (size_t i = 0; i < M; i += N) {
    const size_t n = std::min(N, M - i);
    auto v = hn::Mul(load_n_f32(d, x + i, n), f);
    if (weight) v = hn::Mul(v, load_n_f32(d, weight + i, n));
    store_n_f32(d, v, y + i, n);
  }
}

void rms_norm_kernel(const RmsNormArgs& a, int64_t begin, int64_t end) {
  const auto M = static_cast<size_t>(a.M);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.x_stride;
    scale_row(x, inverse_rms(Plain{x}, M, a.eps), a.weight, a.y + t * a.M, M);
  }
}

void add_rms_norm_kernel(const RmsNormArgs& a, int64_t begin, int64_t end) {
  const auto M = static_cast<size_t>(a.M);
  for (int64_t t = begin; t < end; ++t) {
    float* residual = a.residual + t * a.residual_stride;
    const float factor = inverse_rms(Added{a.x + t * a.x_stride, residual}, M, a.eps);
    scale_row(residual, factor, a.weight, a.y + t * a.M, M);
  }
}

void gated_rms_norm_kernel(const RmsNormArgs& a, int64_t begin, int64_t end) {
  const int64_t part = a.M / a.groups;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t m = 0; m < a.M; m += part) {
      float* y = a.y + t * a.M + m;
      const Gated source{a.x + t * a.x_stride + m, a.z + t * a.z_stride + m, y};
      const float factor = inverse_rms(source, static_cast<size_t>(part), a.eps);
      scale_row(y, factor, a.weight ? a.weight + m : nullptr, y, static_cast<size_t>(part));
    }
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(rms_norm_kernel);
HWY_EXPORT(add_rms_norm_kernel);
HWY_EXPORT(gated_rms_norm_kernel);

namespace cpu {
namespace {

RmsNormArgs make_args(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  RmsNormArgs a{};
  a.x = x.data<float>();
  a.weight = weight.defined() ? weight.data<float>() : nullptr;
  a.y = y.data<float>();
  a.x_stride = x.stride(0);
  a.M = x.size(1);
  a.groups = 1;
  a.eps = eps;
  return a;
}

// Rows a piece: some ten microseconds, as waking a thread may take as long.
int64_t grain(int64_t M, int64_t elements) { return std::max<int64_t>(1, elements / M); }

}  // namespace

void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  const RmsNormArgs a = make_args(x, weight, eps, y);
  parallel_for(x.size(0), grain(a.M, 65536), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rms_norm_kernel)(a, begin, end);
  });
}

void add_rms_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                  float eps, const Tensor& y) {
  if (before.raw() != residual.raw()) copy_bytes(residual.raw(), kCpu, before.raw(), kCpu, before.bytes());
  RmsNormArgs a = make_args(x, weight, eps, y);
  a.residual = residual.data<float>();
  a.residual_stride = residual.stride(0);
  parallel_for(x.size(0), grain(a.M, 65536), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_rms_norm_kernel)(a, begin, end);
  });
}

void gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps,
                    const Tensor& y) {
  RmsNormArgs a = make_args(x, weight, eps, y);
  a.z = z.data<float>();
  a.z_stride = z.stride(0);
  a.groups = groups;
  parallel_for(x.size(0), grain(a.M, 32768), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(gated_rms_norm_kernel)(a, begin, end);
  });
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
