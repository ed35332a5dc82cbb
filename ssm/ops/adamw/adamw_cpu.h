#pragma once

#include "ssm/ops/adamw/adamw.h"

namespace ssm::cpu {

void adamw(const AdamW& options, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v,
           const Tensor& grad_scale, const Tensor& narrow);

}  // namespace ssm::cpu
