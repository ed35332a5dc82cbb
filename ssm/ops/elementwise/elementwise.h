// Small maps over f32 tensors; the result has the operand's strides, so a channels-contiguous one stays so.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

Tensor negative_exp(const Tensor& x);  // -exp(x): A from A_log

}  // namespace ssm
