#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cpu {

void negative_exp(const Tensor& x, const Tensor& y);  // contiguous
void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx);
void add_scaled(const Tensor& y, const Tensor& x, float scale);
void move_average(const Tensor& average, const Tensor& value, float weight);
void dropout(const Tensor& x, float p, uint64_t seed, const Tensor& y);
void take_rows(const Tensor& x, const Tensor& places, const Tensor& y);
void put_rows(const Tensor& y, const Tensor& places, const Tensor& x);  // x[places[i]] = y[i]

}  // namespace ssm::cpu
