#pragma once

#include "ssm/ops/layer_norm/layer_norm.h"

namespace ssm::cpu {

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y);
void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const LayerNormGrads& grads);

}  // namespace ssm::cpu
