#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void negative_exp(const Tensor& x, const Tensor& y);  // contiguous
void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx);
void add_scaled(const Tensor& y, const Tensor& x, float scale);
void move_average(const Tensor& average, const Tensor& value, float weight);
void dropout(const Tensor& x, float p, uint64_t seed, const Tensor& y);

}  // namespace ssm::cuda
