#pragma once

#include "ssm/ops/causal_conv1d/causal_conv1d.h"

namespace ssm::cuda {

void causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                   const SequenceBatch& batch, const Tensor& state, const Tensor& y);

}  // namespace ssm::cuda
