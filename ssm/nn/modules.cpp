#include "ssm/nn/modules.h"

#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::nn {

namespace {

Tensor product(const Linear& l, const Tensor& x, const Tensor& bias) {
  if (l.moments) l.moments->add(x);
  const Tensor y = linear(x, l.weight, bias, l.compute, l.result);
  return l.lora ? l.lora->added_to(y, x, l.compute) : y;
}

}  // namespace

Tensor Linear::operator()(const Tensor& x) const { return product(*this, x, bias); }
Tensor Linear::without_bias(const Tensor& x) const { return product(*this, x, {}); }

void Linear::visit(Visitor& v) {
  v.linear(*this);
  v.target({lora, in, out, false});
  if (owns_weight) v.weight("weight", weight, {out, in});
  if (has_bias) v.tensor("bias", bias, {out});
  if (!lora) return;
  v.weight("lora_A.weight", lora->A, {lora->rank, in});
  v.weight("lora_B.weight", lora->B, {out, lora->rank});
}

Tensor Embedding::operator()(const Tensor& ids) const {
  const Tensor y = embedding(ids, weight);
  return lora ? lora->added_to_rows(y, ids) : y;
}

void Embedding::visit(Visitor& v) {
  v.target({lora, rows, width, true});
  v.weight("weight", weight, {rows, width});
  if (!lora) return;
  v.tensor("lora_embedding_A", lora->embedding_A, {lora->rank, rows}, Storage::channels_contiguous);
  v.tensor("lora_embedding_B", lora->embedding_B, {width, lora->rank});
}

void RmsNorm::visit(Visitor& v) { v.tensor("weight", weight, {width}); }

Tensor Conv1d::operator()(const Tensor& x, const SequenceBatch& batch, const Tensor& state) const {
  return causal_conv1d(x, weight.select(1, 0), bias, Activation::silu, batch, state);
}

void Conv1d::visit(Visitor& v) {
  v.tensor("weight", weight, {channels, 1, width}, Storage::channels_contiguous);
  if (has_bias) v.tensor("bias", bias, {channels});
}

}  // namespace ssm::nn
