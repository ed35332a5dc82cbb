#pragma once

#include "ssm/ops/cross_entropy/cross_entropy.h"

namespace ssm::cuda {

void cross_entropy(const Tensor& logits, const Tensor& targets, int64_t vocab, const CrossEntropy& result);

}  // namespace ssm::cuda
