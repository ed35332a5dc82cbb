#pragma once

#include "ssm/ops/gradient_norm/gradient_norm.h"

namespace ssm::cuda {

void gradient_norm(std::span<const Tensor> gradients, float max_norm, const GradientNorm& result);

}  // namespace ssm::cuda
