#pragma once

#include "ssm/core/tensor.h"
#include "ssm/quant/quantized_tensor.h"

namespace ssm::cuda {

void embedding(const Tensor& ids, const Tensor& table, const Tensor& y);
void embedding(const Tensor& ids, const QuantizedTensor& table, const Tensor& y);
void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight);

}  // namespace ssm::cuda
