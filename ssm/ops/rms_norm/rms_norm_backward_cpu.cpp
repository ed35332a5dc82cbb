// A row is read twice, the second time from the core's cache. Sums over rows (dweight) are taken in at most
// kMostBlocks fixed blocks, then in their order.
#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/ops/rms_norm/rms_norm_cpu.h"
#include "ssm/ops/simd/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/rms_norm/rms_norm_backward_cpu.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include "ssm/ops/simd/math-inl.h"

#ifndef SSM_RMS_NORM_BACKWARD_ROWS
#define SSM_RMS_NORM_BACKWARD_ROWS
namespace ssm {
// Pointers to the first row; a null one is absent.
struct RmsNormRows {
  const float *x, *z, *dy, *weight;
  float *dresidual, *dx, *dz;
  int64_t x_stride, z_stride, dy_stride, dresidual_stride, dx_stride, dz_stride;
  int64_t M, groups;
  float eps;
};
}  // namespace ssm
#endif

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

struct GatedRow {};  // scratch

// r and r^3 mean(g u) of a group.
struct Factors {
  float r, c;
};
HWY_INLINE Factors factors_of(const float* u, const float* dy, const float* weight, size_t M, float eps) {
  const hn::ScalableTag<float> d;
  const size_t N = hn::Lanes(d);
  auto square0 = hn::Zero(d), square1 = square0, dot0 = square0, dot1 = square0;
  const auto add = [&](size_t i, size_t n, auto& square, auto& dot) HWY_ATTR {
    const auto v = load_n_f32(d, u + i, n);
    auto g = load_n_f32(d, dy + i, n);
    if (weight) g = hn::Mul(g, load_n_f32(d, weight + i, n));
    square = hn::MulAdd(v, v, square);
    dot = hn::MulAdd(g, v, dot);
  };
  size_t i = 0;
  for (; i + 2 * N <= M; i += 2 * N) {
    add(i, N, square0, dot0);
    add(i + N, N, square1, dot1);
  }
  for (; i < M; i += N) add(i, std::min(N, M - i), square0, dot0);
  const auto count = static_cast<float>(M);
  const float square = hn::GetLane(hn::SumOfLanes(d, hn::Add(square0, square1)));
  const float dot = hn::GetLane(hn::SumOfLanes(d, hn::Add(dot0, dot1)));
  const float r = 1.0f / std::sqrt(square / count + eps);
  return {r, r * r * (r * (dot / count))};
}

// Calls out(d, i, n, du) along a group; adds dy u r to dweight, unless null.
template <class Out>
HWY_INLINE void backward_row(const float* u, const float* dy, const float* weight, size_t M, float eps,
                             float* dweight, const Out& out) {
  const hn::ScalableTag<float> d;
  const Factors f = factors_of(u, dy, weight, M, eps);
  const auto r = hn::Set(d, f.r), c = hn::Set(d, f.c);
  for (size_t i = 0; i < M; i += hn::Lanes(d)) {
    const size_t n = std::min(hn::Lanes(d), M - i);
    const auto v = load_n_f32(d, u + i, n);
    const auto scaled = hn::Mul(load_n_f32(d, dy + i, n), r);
    if (dweight) store_n_f32(d, hn::MulAdd(scaled, v, load_n_f32(d, dweight + i, n)), dweight + i, n);
    const auto g = weight ? hn::Mul(scaled, load_n_f32(d, weight + i, n)) : scaled;
    out(d, i, n, hn::NegMulAdd(v, c, g));
  }
}

void plain_row(const RmsNormRows& a, int64_t t, float* dweight) {
  float* const dx = a.dx ? a.dx + t * a.dx_stride : nullptr;
  float* const dresidual = a.dresidual ? a.dresidual + t * a.dresidual_stride : nullptr;
  backward_row(a.x + t * a.x_stride, a.dy + t * a.dy_stride, a.weight, static_cast<size_t>(a.M), a.eps,
               dweight, [&](auto d, size_t i, size_t n, auto du) HWY_ATTR {
                 if (dresidual) {
                   du = hn::Add(du, load_n_f32(d, dresidual + i, n));
                   store_n_f32(d, du, dresidual + i, n);
                 }
                 if (dx) store_n_f32(d, du, dx + i, n);
               });
}

void gated_row(const RmsNormRows& a, int64_t t, float* dweight) {
  const hn::ScalableTag<float> tag;
  const auto part = static_cast<size_t>(a.M / a.groups);
  float* const u = cpu::thread_scratch<GatedRow>(static_cast<int64_t>(3 * part));
  float *const silu = u + part, *const slope = silu + part;  // silu(z), x silu'(z)
  for (int64_t m = 0; m < a.M; m += static_cast<int64_t>(part)) {
    const float *x = a.x + t * a.x_stride + m, *z = a.z + t * a.z_stride + m;
    for (size_t i = 0; i < part; i += hn::Lanes(tag)) {
      const size_t n = std::min(hn::Lanes(tag), part - i);
      const auto xv = load_n_f32(tag, x + i, n), zv = load_n_f32(tag, z + i, n);
      const auto one = hn::Set(tag, 1.0f), e = exp_f32(tag, hn::Neg(zv));  // 1 - s = e s
      const auto s = hn::IfThenZeroElse(hn::Lt(zv, hn::Set(tag, -88.3f)), hn::Div(one, hn::Add(one, e)));
      const auto gate = hn::Mul(zv, s);
      store_n_f32(tag, hn::Mul(xv, gate), u + i, n);
      store_n_f32(tag, gate, silu + i, n);
      store_n_f32(tag, hn::Mul(xv, hn::MulAdd(gate, hn::Mul(e, s), s)), slope + i, n);
    }
    float* const dx = a.dx ? a.dx + t * a.dx_stride + m : nullptr;
    float* const dz = a.dz ? a.dz + t * a.dz_stride + m : nullptr;
    backward_row(u, a.dy + t * a.dy_stride + m, a.weight ? a.weight + m : nullptr, part, a.eps,
                 dweight ? dweight + m : nullptr, [&](auto d, size_t i, size_t n, auto du) HWY_ATTR {
                   if (dx) store_n_f32(d, hn::Mul(du, load_n_f32(d, silu + i, n)), dx + i, n);
                   if (dz) store_n_f32(d, hn::Mul(du, load_n_f32(d, slope + i, n)), dz + i, n);
                 });
  }
}

// Rows [begin, end); adds their part of dweight to `dweight`, unless null.
void rms_norm_backward_kernel(const RmsNormRows& a, int64_t begin, int64_t end, float* dweight) {
  for (int64_t t = begin; t < end; ++t) {
    if (a.z)
      gated_row(a, t, dweight);
    else
      plain_row(a, t, dweight);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(rms_norm_backward_kernel);

namespace cpu {
namespace {

constexpr int64_t kLeastRows = 16, kMostBlocks = 64;

RmsNormRows rows_of(const RmsNormBackward& b) {
  RmsNormRows a{};
  const auto row = [](const Tensor& t, auto& pointer, int64_t& stride) {
    if (!t.defined()) return;
    pointer = t.data<float>();
    stride = t.stride(0);
  };
  row(b.x, a.x, a.x_stride);
  row(b.z, a.z, a.z_stride);
  row(b.dy, a.dy, a.dy_stride);
  row(b.dresidual, a.dresidual, a.dresidual_stride);
  row(b.dx, a.dx, a.dx_stride);
  row(b.dz, a.dz, a.dz_stride);
  a.weight = b.weight.defined() ? b.weight.data<float>() : nullptr;
  a.M = b.x.size(1);
  a.groups = b.groups;
  a.eps = b.eps;
  return a;
}

}  // namespace

void rms_norm_backward(const RmsNormBackward& args) {
  const RmsNormRows a = rows_of(args);
  const int64_t T = args.x.size(0), M = a.M;
  const int64_t rows = std::max(kLeastRows, (T + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = (T + rows - 1) / rows;
  float* const parts = args.dweight.defined() ? cpu::thread_scratch<cpu::SharedScratch>(blocks * M) : nullptr;
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* const part = parts ? parts + block * M : nullptr;
      if (part) std::fill_n(part, M, 0.0f);
      HWY_DYNAMIC_DISPATCH(rms_norm_backward_kernel)(a, block * rows, std::min(T, (block + 1) * rows), part);
    }
  });
  if (!parts) return;
  float* const dweight = args.dweight.data<float>();
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t m = 0; m < M; ++m) dweight[m] += parts[block * M + m];
  }
}

}  // namespace cpu
}  // namespace ssm
#endif  // HWY_ONCE
