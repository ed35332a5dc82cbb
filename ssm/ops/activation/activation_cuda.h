#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void gelu(const Tensor& x, const Tensor& y);
void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx);
void gated_silu(const Tensor& x, const Tensor& z, const Tensor& y);
void gated_silu_backward(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& dx,
                         const Tensor& dz);

}  // namespace ssm::cuda
