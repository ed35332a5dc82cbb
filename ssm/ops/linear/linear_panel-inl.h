// The product of a tile of rows with a panel, in registers; linear and its backward share it.
//
// A panel holds as many columns of the result as a vector has lanes: for each four along the sum, four
// vectors; block b of vector v belongs to column 4 b + v, so that one fold gives the outputs side by side.
// An output is four partial sums (k mod 4), each in order, added as (0 + 2) + (1 + 3).
#if defined(SSM_OPS_LINEAR_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_LINEAR_PANEL_INL_H_
#undef SSM_OPS_LINEAR_PANEL_INL_H_
#else
#define SSM_OPS_LINEAR_PANEL_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "ssm/ops/linear/linear_blocks.h"
#include "ssm/ops/simd/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// The sum of each 128-bit block of four vectors: block j of the result holds those of a, b, c and e.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V fold4(D d, V a, V b, V c, V e) {
  const hn::Repartition<double, D> d64;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto x = hn::BitCast(d64, ab), y = hn::BitCast(d64, ce);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, x, y)),
                 hn::BitCast(d, hn::InterleaveUpper(d64, x, y)));
}

using D4 = hn::Full128<float>;  // a step along K: the four partial sums of an output
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(D());
constexpr int64_t kBlocks = kLanes / 4;                                      // of four lanes
constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64;  // 32, or 16

constexpr int kPanelRows = kManyRegisters ? 6 : 3;
constexpr int64_t panel_floats(int64_t K) { return (K + 3) / 4 * 4 * kLanes; }

// Each 4 x 4 of a block of four vectors, transposed: lane j of block b of out[v] is lane v of block b of
// in[j].
HWY_INLINE void transpose4(const V (&in)[4], V (&out)[4]) {
  const D d;
  const hn::Repartition<double, D> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, in[0], in[1]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, in[0], in[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, in[2], in[3]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, in[2], in[3]));
  out[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  out[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}

template <int MR>
HWY_INLINE void panel_step(const float* HWY_RESTRICT x, int64_t x_stride, const float* HWY_RESTRICT panel,
                           V (&acc)[MR][4]) {
  const D d;
  V xs[MR];
  SSM_UNROLL for (int i = 0; i < MR; ++i) xs[i] = hn::LoadDup128(d, x + i * x_stride);
  SSM_UNROLL for (int v = 0; v < 4; ++v) {
    const V w = hn::Load(d, panel + v * kLanes);
    SSM_UNROLL for (int i = 0; i < MR; ++i) acc[i][v] = hn::MulAdd(xs[i], w, acc[i][v]);
  }
}

// y (+)= x panel (+ bias), MR rows. `next` is fetched meanwhile, a line every next_step bytes for each step
// of four.
template <int MR, bool kAdds>
HWY_NOINLINE void panel_tile(const float* HWY_RESTRICT x, int64_t x_stride, const float* HWY_RESTRICT panel,
                             int64_t K, int64_t columns, const float* bias, const char* next,
                             int64_t next_step, float* y, int64_t y_stride) {
  const D d;
  V acc[MR][4];
  SSM_UNROLL for (int i = 0; i < MR; ++i) { SSM_UNROLL for (int v = 0; v < 4; ++v) acc[i][v] = hn::Zero(d); }
  int64_t k = 0;
  for (; k + 4 <= K; k += 4) {
    __builtin_prefetch(next, 0, 2);
    next += next_step;
    panel_step(x + k, x_stride, panel + k * kLanes, acc);
  }
  if (k < K) {
    HWY_ALIGN float last[MR * 4] = {};
    SSM_UNROLL for (int i = 0; i < MR; ++i) std::copy_n(x + i * x_stride + k, K - k, last + 4 * i);
    panel_step(last, 4, panel + k * kLanes, acc);
  }
  SSM_UNROLL for (int i = 0; i < MR; ++i) {
    V sum = fold4(d, acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    const auto n = static_cast<size_t>(columns);
    if (bias) sum = hn::Add(sum, load_n_f32(d, bias, n));
    if (kAdds) sum = hn::Add(sum, load_n_f32(d, y + i * y_stride, n));
    store_n_f32(d, sum, y + i * y_stride, n);
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
