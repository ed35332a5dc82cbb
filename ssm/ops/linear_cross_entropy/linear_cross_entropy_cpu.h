#pragma once

#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace ssm::cpu {

void linear_cross_entropy(const Tensor& hidden, const Weight& weight, const Tensor& targets,
                          const Tensor& row_weights, float scale, int64_t vocab,
                          const LinearCrossEntropyGrads& grads, const LinearCrossEntropy& result);

}  // namespace ssm::cpu
