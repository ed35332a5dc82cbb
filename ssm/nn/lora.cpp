#include "ssm/nn/lora.h"

#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::nn {
namespace {

Tensor here_in_f32(const Tensor& t) { return t.to(kCpu).row_major().to(DType::f32); }

}  // namespace

Tensor Lora::inner(const Tensor& x, DType compute) const {
  return linear(drops && dropout > 0 ? ssm::dropout(x, dropout, seed) : x, A, {}, compute);
}

Tensor Lora::added_to(const Tensor& y, const Tensor& x, DType compute) const {
  return add_scaled(y, linear(inner(x, compute), B, {}, compute, y.dtype()), scale);
}

Tensor Lora::added_to_rows(const Tensor& y, const Tensor& ids) const {
  const Tensor rows = embedding(ids, embedding_A.transpose(0, 1));  // [T, rank]
  return add_scaled(y, linear(rows, embedding_B), scale);
}

Tensor Lora::product() const {
  // linear(x, W) = x W^T
  const bool of_rows = embedding_A.defined();
  const Tensor left = of_rows ? here_in_f32(embedding_A.transpose(0, 1)) : here_in_f32(dense(B, "LoRA"));
  const Tensor right =
      of_rows ? here_in_f32(embedding_B) : here_in_f32(dense(A, "LoRA")).transpose(0, 1).clone();
  const Tensor zero = Tensor::zeros({left.size(0), right.size(0)});
  return add_scaled(zero, linear(left, right), scale);
}

}  // namespace ssm::nn
