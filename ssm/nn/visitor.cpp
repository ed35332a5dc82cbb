#include "ssm/nn/visitor.h"

namespace ssm::nn {

Tensor stored_as(const Tensor& tensor, Storage storage) {
  const Tensor f32 = tensor.to(DType::f32);
  if (storage == Storage::row_major || f32.rank() < 2) return f32.row_major();
  return f32.transpose(0, f32.rank() - 1).clone().transpose(0, f32.rank() - 1);
}

}  // namespace ssm::nn
