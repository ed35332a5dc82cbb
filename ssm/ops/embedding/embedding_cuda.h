#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void embedding(const Tensor& ids, const Tensor& table, const Tensor& y);

}  // namespace ssm::cuda
