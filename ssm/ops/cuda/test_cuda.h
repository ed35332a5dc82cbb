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
