#include "ssm/ops/elementwise/elementwise.h"

#include <cmath>

namespace ssm {

Tensor negative_exp(const Tensor& x) {
  SSM_CHECK(x.defined() && x.dtype() == DType::f32, "negative_exp: x is not f32");
  if (!x.contiguous()) {
    SSM_CHECK(x.rank() == 2, "negative_exp: x has shape {} and is not contiguous", x.shape());
    return negative_exp(x.transpose(0, 1).clone()).transpose(0, 1);
  }
  Tensor y = Tensor::empty(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] = -std::exp(x.data<float>()[i]);
  return y;
}

}  // namespace ssm
