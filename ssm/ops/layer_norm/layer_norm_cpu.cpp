// Sums over rows (dweight, dbias) are taken in at most kMostBlocks fixed blocks, then in their order.
#include "ssm/ops/layer_norm/layer_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/layer_norm/layer_norm_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_LAYER_NORM_ROWS
#define SSM_LAYER_NORM_ROWS
namespace ssm {
// Pointers to the first row. A residual and its gradient are null where none is added to; dx and dresidual
// where nobody wants them.
struct LayerNormRows {
  const float *x, *before, *weight, *bias, *dy;
  float *residual, *y, *dx, *dresidual;
  int64_t x_stride, before_stride, residual_stride, y_stride, dy_stride, dx_stride, dresidual_stride, M;
  float eps;
};
}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// The sum of f(d, i, n) over a row, in an order given by M alone.
template <class F>
HWY_INLINE float row_sum(size_t M, const F& f) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * N <= M; i += 4 * N) {
    s0 = hn::Add(s0, f(d, i, N));
    s1 = hn::Add(s1, f(d, i + N, N));
    s2 = hn::Add(s2, f(d, i + 2 * N, N));
    s3 = hn::Add(s3, f(d, i + 3 * N, N));
  }
  for (; i < M; i += N) s0 = hn::Add(s0, f(d, i, std::min(N, M - i)));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

// The n next elements less the mean; zeros after them.
template <class D>
HWY_INLINE hn::Vec<D> centred(D d, const float* x, size_t n, float mean) {
  const auto v = hn::Sub(load_n_f32(d, x, n), hn::Set(d, mean));
  return n >= hn::Lanes(d) ? v : hn::IfThenElseZero(hn::FirstN(d, n), v);
}

struct Moments {
  float mean, inverse;  // 1 / sqrt(variance + eps)
};
HWY_INLINE Moments moments(const float* x, size_t M, float eps) {
  const auto count = static_cast<float>(M);
  const float mean =
      row_sum(M, [&](auto d, size_t i, size_t n) HWY_ATTR { return load_n_f32(d, x + i, n); }) / count;
  const float square = row_sum(M, [&](auto d, size_t i, size_t n) HWY_ATTR {
    const auto v = centred(d, x + i, n, mean);
    return hn::Mul(v, v);
  });
  return {mean, 1.0f / std::sqrt(square / count + eps)};
}

void layer_norm_kernel(const LayerNormRows& a, int64_t begin, int64_t end) {
  const hn::ScalableTag<float> d;
  const auto M = static_cast<size_t>(a.M);
  for (int64_t t = begin; t < end; ++t) {
    const float* x = a.x + t * a.x_stride;
    float* const y = a.y + t * a.y_stride;
    if (a.residual) {
      const float* const before = a.before + t * a.before_stride;
      float* const sum = a.residual + t * a.residual_stride;
      for (size_t i = 0; i < M; i += hn::Lanes(d)) {
        const size_t n = std::min(hn::Lanes(d), M - i);
        store_n_f32(d, hn::Add(load_n_f32(d, before + i, n), load_n_f32(d, x + i, n)), sum + i, n);
      }
      x = sum;
    }
    const Moments m = moments(x, M, a.eps);
    for (size_t i = 0; i < M; i += hn::Lanes(d)) {
      const size_t n = std::min(hn::Lanes(d), M - i);
      const auto normed = hn::Mul(centred(d, x + i, n, m.mean), hn::Set(d, m.inverse));
      store_n_f32(d, hn::MulAdd(normed, load_n_f32(d, a.weight + i, n), load_n_f32(d, a.bias + i, n)), y + i,
                  n);
    }
  }
}

// One row; adds its part to dweight and dbias [M], unless null.
HWY_INLINE void backward_row(const LayerNormRows& a, int64_t t, float* dweight, float* dbias) {
  const hn::ScalableTag<float> d;
  const auto M = static_cast<size_t>(a.M);
  const auto count = static_cast<float>(M);
  const float *const x = a.x + t * a.x_stride, *const dy = a.dy + t * a.dy_stride;
  const Moments m = moments(x, M, a.eps);
  const auto inverse = hn::Set(d, m.inverse);
  const auto g = [&](auto tag, size_t i, size_t n) HWY_ATTR {
    return hn::Mul(load_n_f32(tag, dy + i, n), load_n_f32(tag, a.weight + i, n));
  };
  const float mean_g = row_sum(M, g) / count;
  const float mean_gn =
      row_sum(M,
              [&](auto tag, size_t i, size_t n) HWY_ATTR {
                return hn::Mul(g(tag, i, n), hn::Mul(centred(tag, x + i, n, m.mean), inverse));
              }) /
      count;
  for (size_t i = 0; i < M; i += hn::Lanes(d)) {
    const size_t n = std::min(hn::Lanes(d), M - i);
    const auto normed = hn::Mul(centred(d, x + i, n, m.mean), inverse), above = load_n_f32(d, dy + i, n);
    if (dweight) store_n_f32(d, hn::MulAdd(above, normed, load_n_f32(d, dweight + i, n)), dweight + i, n);
    if (dbias) store_n_f32(d, hn::Add(above, load_n_f32(d, dbias + i, n)), dbias + i, n);
    if (!a.dx && !a.dresidual) continue;
    auto du = hn::NegMulAdd(normed, hn::Set(d, mean_gn), hn::Sub(g(d, i, n), hn::Set(d, mean_g)));
    du = hn::Mul(du, inverse);
    if (a.dresidual) {
      float* const sum = a.dresidual + t * a.dresidual_stride + i;
      du = hn::Add(load_n_f32(d, sum, n), du);
      store_n_f32(d, du, sum, n);
    }
    if (a.dx) store_n_f32(d, du, a.dx + t * a.dx_stride + i, n);
  }
}

void layer_norm_backward_kernel(const LayerNormRows& a, int64_t begin, int64_t end, float* dweight,
                                float* dbias) {
  for (int64_t t = begin; t < end; ++t) backward_row(a, t, dweight, dbias);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(layer_norm_kernel);
HWY_EXPORT(layer_norm_backward_kernel);

namespace cpu {
namespace {

constexpr int64_t kLeastRows = 16, kMostBlocks = 64;

LayerNormRows rows_of(const Tensor& x, const Tensor& weight, float eps) {
  LayerNormRows a{};
  a.x = x.data<float>();
  a.x_stride = x.stride(0);
  a.weight = weight.data<float>();
  a.M = x.size(1);
  a.eps = eps;
  return a;
}

void norm_rows(LayerNormRows a, const Tensor& bias, const Tensor& y) {
  a.bias = bias.data<float>();
  a.y = y.data<float>();
  a.y_stride = y.stride(0);
  parallel_for(y.size(0), std::max<int64_t>(1, 32768 / a.M), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(layer_norm_kernel)(a, begin, end);
  });
}

void add_parts(const float* parts, int64_t blocks, const Tensor& to) {
  const int64_t M = to.size(0);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t m = 0; m < M; ++m) to.data<float>()[m * to.stride(0)] += parts[2 * block * M + m];
  }
}

}  // namespace

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y) {
  norm_rows(rows_of(x, weight, eps), bias, y);
}

void add_layer_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                    const Tensor& bias, float eps, const Tensor& y) {
  LayerNormRows a = rows_of(x, weight, eps);
  a.before = before.data<float>();
  a.before_stride = before.stride(0);
  a.residual = residual.data<float>();
  a.residual_stride = residual.stride(0);
  norm_rows(a, bias, y);
}

void layer_norms(const Tensor& x, const Tensor& residual, const LayerNormParameters& first,
                 const LayerNormParameters& second, const Tensor& y, const Tensor& y2) {
  if (x.defined())
    add_layer_norm(x, residual, residual, first.weight, first.bias, first.eps, y);
  else
    layer_norm(residual, first.weight, first.bias, first.eps, y);
  layer_norm(residual, second.weight, second.bias, second.eps, y2);
}

void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const Tensor& dresidual, const LayerNormGrads& grads) {
  LayerNormRows a = rows_of(x, weight, eps);
  a.dy = dy.data<float>();
  a.dy_stride = dy.stride(0);
  if (grads.dx.defined()) {
    a.dx = grads.dx.data<float>();
    a.dx_stride = grads.dx.stride(0);
  }
  if (dresidual.defined()) {
    a.dresidual = dresidual.data<float>();
    a.dresidual_stride = dresidual.stride(0);
  }
  const int64_t T = x.size(0), M = a.M;
  const int64_t rows = std::max(kLeastRows, (T + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = (T + rows - 1) / rows;
  float* const parts = thread_scratch<SharedScratch>(2 * blocks * M);  // of dweight, of dbias
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* const part = parts + 2 * block * M;
      std::fill_n(part, 2 * M, 0.0f);
      HWY_DYNAMIC_DISPATCH(layer_norm_backward_kernel)
      (a, block * rows, std::min(T, (block + 1) * rows), part, part + M);
    }
  });
  if (grads.dweight.defined()) add_parts(parts, blocks, grads.dweight);
  if (grads.dbias.defined()) add_parts(parts + M, blocks, grads.dbias);
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
