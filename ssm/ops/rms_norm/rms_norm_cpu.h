#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/rms_norm/rms_norm_backward.h"

namespace ssm::cpu {

void rms_norm(const Tensor& x, const Tensor& weight, float eps, const Tensor& y);
// residual = before + x; they may be the same memory.
void add_rms_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                  float eps, const Tensor& y);
void gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps,
                    const Tensor& y);

void rms_norm_backward(const RmsNormBackward& args);

}  // namespace ssm::cpu
