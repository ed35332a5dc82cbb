// Vector math for the CPU kernels, once per Highway target: exp, silu, softplus on f32, and loads that widen
// bf16 and f16. Each lane is computed alike wherever it lies, so results do not depend on a vector's
// position.
#if defined(SSM_OPS_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SIMD_MATH_INL_H_
#undef SSM_OPS_SIMD_MATH_INL_H_
#else
#define SSM_OPS_SIMD_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "ssm/core/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// e^x within 3 ulp; 0 below -87.3 (no subnormals), held at 2.4e38 above 88.37. The polynomial is Cephes
// expf's.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_f32(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V low = hn::Set(d, -87.33654f);
  const auto underflow = hn::Lt(x, low);
  x = hn::Min(hn::Max(x, low), hn::Set(d, 88.3762626647949f));
  const V n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::MulAdd(p, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  const auto bias = hn::Set(di, 127);
  const V scale = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), bias)));
  return hn::IfThenZeroElse(underflow, hn::Mul(p, scale));
}

inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr float kExp2Limit = 126.0f;

#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
// bits(2^(j / 32)) - (j << 18): two registers that one permutation reads.
alignas(64) inline constexpr uint32_t kExp2Table[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3,
};
#endif

// 2^(a b) for |a b| < kExp2Limit alone, within 1.8 ulp on AVX-512 and 2.3 elsewhere; 2^0 is exactly 1. The
// product is not rounded before its nearest step is taken off (where the target fuses). The polynomials are
// minimax fits in relative error.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_product_in_range(D d, V a, V b) {
  const hn::RebindToSigned<D> di;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  if constexpr (sizeof(V) == 64) {
    const V magic = hn::Set(d, 393216.0f);  // 1.5 * 2^18: adding it rounds to 1/32, in the low bits
    const V t = hn::MulAdd(a, b, magic);
    const V r = hn::MulSub(a, b, hn::Sub(t, magic));
    const V q =
        hn::Mul(r, hn::MulAdd(r, hn::Set(d, 2.402270511e-01f), hn::Set(d, 6.931573406e-01f)));  // 5.4e-8
    const auto step = hn::BitCast(di, t);
    const __m512i entry = _mm512_permutex2var_epi32(_mm512_load_si512(kExp2Table), step.raw,
                                                    _mm512_load_si512(kExp2Table + 16));
    const V scale = hn::BitCast(d, hn::Add(hn::Vec<decltype(di)>{entry}, hn::ShiftLeft<18>(step)));
    return hn::MulAdd(scale, q, scale);
  }
#endif
  const V magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V t = hn::MulAdd(a, b, magic);
  const V r = hn::MulSub(a, b, hn::Sub(t, magic));
  V p = hn::Set(d, 1.326472391e-03f);  // 9.1e-8
  p = hn::MulAdd(p, r, hn::Set(d, 9.671512869e-03f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.550733754e-02f));
  p = hn::MulAdd(p, r, hn::Set(d, 2.402224208e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 6.931469776e-01f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, t))));
}

// The same bits inside that range; below it 0, above it 2^126.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_product(D d, V a, V b) {
  const V x = hn::Mul(a, b);
  const V inside = exp2_product_in_range(d, a, b);
  const V limit = hn::Set(d, kExp2Limit);
  const V high = hn::IfThenElse(hn::Lt(x, limit), inside, hn::Set(d, 0x1p126f));
  return hn::IfThenElseZero(hn::Gt(x, hn::Neg(limit)), high);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu_f32(D d, V x) {  // x * sigmoid(x); 0 below -88.3, where e^-x is held
  const V y = hn::Div(x, hn::Add(hn::Set(d, 1.0f), exp_f32(d, hn::Neg(x))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -88.3f)), y);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid_f32(D d, V x) {  // 1 / (1 + e^-x); 0 below -88.3, where e^-x is held
  const V y = hn::Div(hn::Set(d, 1.0f), hn::Add(hn::Set(d, 1.0f), exp_f32(d, hn::Neg(x))));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -88.3f)), y);
}

// The derivative of silu: sigmoid(x) (1 + x (1 - sigmoid(x))).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu_slope_f32(D d, V x) {
  const V s = sigmoid_f32(d, x);
  return hn::Mul(s, hn::MulAdd(x, hn::Sub(hn::Set(d, 1.0f), s), hn::Set(d, 1.0f)));
}

// x + log(1 + y) for y in [0, 1], the logarithm within 3 ulp: 2 atanh(y / (2 + y)) as an odd polynomial.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V add_log1p_unit_f32(D d, V x, V y) {
  const V s = hn::Div(y, hn::Add(hn::Set(d, 2.0f), y));  // at most 1/3
  const V q = hn::Mul(s, s);
  V p = hn::Set(d, 2.0f / 17);
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 15));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 13));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 11));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 9));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 7));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 5));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f / 3));
  p = hn::MulAdd(p, q, hn::Set(d, 2.0f));
  return hn::MulAdd(p, s, x);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus_f32(D d, V x) {  // log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
  return add_log1p_unit_f32(d, hn::Max(x, hn::Zero(d)), exp_f32(d, hn::Neg(hn::Abs(x))));
}

// Loads Lanes(d) elements as f32.
template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const BFloat16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}
template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const Float16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}

// Stores Lanes(d) elements, rounded to nearest even.
template <class D>
HWY_INLINE void store_f32(D d, hn::Vec<D> x, float* p) {
  hn::StoreU(x, d, p);
}
template <class D>
HWY_INLINE void store_f32(D, hn::Vec<D> x, BFloat16* p) {
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(d32, x), high = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(high, hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(d32, 0x7fffu), odd)));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(x));
  const auto kept = hn::IfThenElse(is_nan, hn::Or(high, hn::Set(d32, 0x40u)), rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, kept)), d16, reinterpret_cast<uint16_t*>(p));
}
template <class D>
HWY_INLINE void store_f32(D, hn::Vec<D> x, Float16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
#if HWY_TARGET == HWY_SSE4  // Highway's conversion cuts there
  const D d;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::BitCast(d32, x);
  const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(d32, 1u));
  const auto rounded = hn::BitCast(d, hn::Add(bits, hn::Add(hn::Set(d32, 0xfffu), odd)));
  x = hn::IfThenElse(hn::IsNaN(x), x, rounded);
#endif
  hn::StoreU(hn::DemoteTo(d16, x), d16, reinterpret_cast<hwy::float16_t*>(p));
}

// Copies n elements, one of the types f32.
template <class From, class To>
HWY_INLINE void convert_row(const From* from, int64_t n, To* to) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_f32(d, load_f32(d, from + i), to + i);
  for (; i < n; ++i) to[i] = from_float<To>(to_float(from[i]));
}

// The first n < Lanes(d) elements at p, zeros after them; nothing past them is touched.
template <class D>
HWY_INLINE hn::Vec<D> load_tail_f32(D d, const float* p, size_t n) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  return hn::MaskedLoad(hn::FirstN(d, n), d, p);
#else  // elsewhere a masked load is a whole one
  HWY_ALIGN float lanes[hn::MaxLanes(D())] = {};
  for (size_t i = 0; i < n; ++i) lanes[i] = p[i];
  return hn::Load(d, lanes);
#endif
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_tail_f32(D d, V x, float* p, size_t n) {
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  hn::BlendedStore(x, hn::FirstN(d, n), d, p);
#else
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(x, d, lanes);
  for (size_t i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

// The next n elements of a row that ends there: a whole vector, or its last part.
template <class D>
HWY_INLINE hn::Vec<D> load_n_f32(D d, const float* p, size_t n) {
  return HWY_LIKELY(n >= hn::Lanes(d)) ? hn::LoadU(d, p) : load_tail_f32(d, p, n);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_n_f32(D d, V x, float* p, size_t n) {
  if (HWY_LIKELY(n >= hn::Lanes(d)))
    hn::StoreU(x, d, p);
  else
    store_tail_f32(d, x, p, n);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
