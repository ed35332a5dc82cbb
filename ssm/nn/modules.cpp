#include "ssm/nn/modules.h"

#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::nn {

Tensor Linear::operator()(const Tensor& x) const { return linear(x, weight, bias, compute, result); }

void Linear::visit(Visitor& v) {
  v.weight("weight", weight, {out, in});
  if (has_bias) v.tensor("bias", bias, {out});
}

Tensor Embedding::operator()(const Tensor& ids) const { return embedding(ids, weight); }
void Embedding::visit(Visitor& v) { v.weight("weight", weight, {rows, width}); }

void RmsNorm::visit(Visitor& v) { v.tensor("weight", weight, {width}); }

Tensor Conv1d::operator()(const Tensor& x, const SequenceBatch& batch, const Tensor& state) const {
  return causal_conv1d(x, weight.select(1, 0), bias, Activation::silu, batch, state);
}

void Conv1d::visit(Visitor& v) {
  v.tensor("weight", weight, {channels, 1, width}, Storage::channels_contiguous);
  if (has_bias) v.tensor("bias", bias, {channels});
}

}  // namespace ssm::nn
