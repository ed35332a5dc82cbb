#pragma once

#include "ssm/ops/sampling/sampling.h"

namespace ssm::cuda {

void sample(const Tensor& logits, int64_t vocab, std::span<const SamplingParams> params, const Tensor& seen,
            std::span<const int32_t> slots, std::span<const int64_t> positions, const Tensor& result);

}  // namespace ssm::cuda
