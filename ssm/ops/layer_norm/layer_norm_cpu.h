#pragma once

#include "ssm/ops/layer_norm/layer_norm.h"

namespace ssm::cpu {

void layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps, const Tensor& y);
// residual = before + x; they may be the same memory.
void add_layer_norm(const Tensor& x, const Tensor& before, const Tensor& residual, const Tensor& weight,
                    const Tensor& bias, float eps, const Tensor& y);
// The same of two norms; x may be undefined.
void layer_norms(const Tensor& x, const Tensor& residual, const LayerNormParameters& first,
                 const LayerNormParameters& second, const Tensor& y, const Tensor& y2);
// Of all: where dresidual is defined, du is added to it, and dx is the sum.
void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const Tensor& dresidual, const LayerNormGrads& grads);

}  // namespace ssm::cpu
