// For tests that need a card: they say that they skip where there is none.
#pragma once

#include <gtest/gtest.h>

#include "ssm/ops/test_util.h"

#define SSM_NEED_CUDA() \
  if (const std::string why = ::ssm::why_unavailable(::ssm::kCuda); !why.empty()) GTEST_SKIP() << why

namespace ssm::test {

// What an f32 tensor becomes on its way to a card in `dtype`, and the same values back in f32 for a
// reference.
inline Tensor on_card(const Tensor& x, DType dtype = DType::f32) {
  return x.defined() ? x.to(dtype).to(kCuda) : x;
}
inline Tensor rounded(const Tensor& x, DType dtype) { return x.defined() ? x.to(dtype).to(DType::f32) : x; }

// On the host; a card copies contiguous tensors only, others come back in f32.
inline Tensor from_card(const Tensor& x) {
  if (x.contiguous()) return x.to(kCpu);
  if (x.stride(0) == 1) return from_card(x.transpose(0, 1)).transpose(0, 1);
  const int64_t T = x.size(0), C = x.size(1), stride = x.stride(0);
  const Tensor all = Tensor::empty({(T - 1) * stride + C}, x.dtype());
  copy_bytes(all.raw(), kCpu, x.raw(), kCuda, all.bytes());
  const Tensor wide = all.to(DType::f32), to = Tensor::empty({T, C});
  for (int64_t t = 0; t < T; ++t) std::copy_n(wide.data<float>() + t * stride, C, to.data<float>() + t * C);
  return to;
}

// Rows of `t` on the card, in half of the cases columns of a wider tensor, which begin at a multiple of
// `unit`.
inline Tensor columns_on_card(const Tensor& t, DType dtype, int64_t unit, Rng& rng) {
  const int64_t rows = t.size(0), width = t.size(1);
  const int64_t left = rng.below(2) ? rng.below(9) * unit : 0, right = rng.below(2) ? rng.below(9) * unit : 0;
  const Tensor wide = random_normal({rows, left + width + right}, rng, 1e6f);
  for (int64_t row = 0; row < rows; ++row)
    std::copy_n(t.data<float>() + row * width, width, wide.data<float>() + row * wide.size(1) + left);
  return on_card(wide, dtype).slice(1, left, left + width);
}

// relative_error() of a tensor of a card. A result that was rounded to 16 bits is off by half a unit at
// least.
inline double card_error(const Tensor& a, const std::vector<double>& b) {
  return relative_error(a.to(kCpu), b);
}
inline double rounding_of(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-24;
}

inline constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

}  // namespace ssm::test

// Every test of a card speaks of these.
namespace ssm {
using test::card_error;
using test::kTypes;
using test::on_card;
using test::rounded;
using test::rounding_of;
using test::same_bits;
using test::to_doubles;
}  // namespace ssm
