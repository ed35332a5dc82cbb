#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void negative_exp(const Tensor& x, const Tensor& y);  // contiguous
void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx);
void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y);

}  // namespace ssm::cuda
