#pragma once

#include "ssm/ops/causal_conv1d/causal_conv1d.h"

namespace ssm::cuda {

void causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                   const SequenceBatch& batch, const Tensor& state, const Tensor& y);
void causal_conv1d_backward(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                            const SequenceBatch& batch, const Tensor& initial, const Tensor& dy,
                            const CausalConv1dGrads& grads);

}  // namespace ssm::cuda
