#pragma once

#include "ssm/ops/adamw/adamw.h"

namespace ssm::cpu {

void adamw(const AdamW& options, std::span<const AdamWParameter> parameters, const Tensor& grad_scale);

}  // namespace ssm::cpu
