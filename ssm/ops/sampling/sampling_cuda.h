#pragma once

#include "ssm/ops/sampling/sampling.h"

namespace ssm::cuda {

void sample(const Tensor& logits, int64_t vocab, const Tensor& rows, const Tensor& seen, const Tensor& ids);

}  // namespace ssm::cuda
