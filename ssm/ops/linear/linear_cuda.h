#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, DType compute, const Tensor& y);
bool multiplies_natively(DType dtype);

}  // namespace ssm::cuda
