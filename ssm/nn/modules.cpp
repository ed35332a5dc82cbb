#include "ssm/nn/modules.h"

#include "ssm/ops/activation/activation.h"
#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/linear/linear.h"

namespace ssm::nn {

namespace {

Tensor product(const Linear& l, const Tensor& x, const Tensor& bias) {
  if (l.moments) l.moments->add(x);
  const Tensor y = linear(x, l.weight, bias, l.compute, l.result, bias.defined() ? l.rounded_bias : bias);
  return l.lora ? l.lora->added_to(y, x, l.compute) : y;
}

}  // namespace

Tensor Linear::operator()(const Tensor& x) const { return product(*this, x, bias); }
Tensor Linear::without_bias(const Tensor& x) const { return product(*this, x, {}); }

bool Linear::is_plain() const { return !lora && !moments; }
bool Linear::adds(int64_t T) const { return is_plain() && has_linear_add(T, weight); }
void Linear::add_to(const Tensor& residual, const Tensor& x) const { linear_add(x, weight, bias, residual); }

void Linear::visit(Visitor& v) {
  v.linear(*this);
  v.target({lora, in, out, false});
  if (owns_weight) v.weight("weight", weight, {out, in});
  if (has_bias) v.tensor("bias", bias, {out});
  if (!lora) return;
  v.weight("lora_A.weight", lora->A, {lora->rank, in});
  v.weight("lora_B.weight", lora->B, {out, lora->rank});
}

void Linear::prepare() { rounded_bias = round_bias(bias, compute); }

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

void LayerNorm::visit(Visitor& v) {
  v.tensor("weight", weight, {width});
  v.tensor("bias", bias, {width});
}

Tensor Conv1d::operator()(const Tensor& x, const SequenceBatch& batch, const Tensor& state) const {
  return causal_conv1d(x, weight.select(1, 0), bias, activation, batch, state);
}

void Conv1d::visit(Visitor& v) {
  v.tensor("weight", weight, {channels, 1, width}, Storage::channels_contiguous);
  if (has_bias) v.tensor("bias", bias, {channels});
}

Tensor Mlp::hidden(const Tensor& x) const {
  const Tensor h = up(x);  // [T, F], or [T, 2F]
  const int64_t F = down.in;
  return gated ? gated_silu(h.slice(1, 0, F), h.slice(1, F, 2 * F)) : gelu(h);
}

void Mlp::visit(Visitor& v) {
  v.child(up_name, up);
  v.child(down_name, down);
}

std::pair<Tensor, Tensor> beside(const Linear& l, const Tensor& x, const Mlp& mlp, const Tensor& v) {
  const LinearOperands first{x, l.weight, l.bias}, second{v, mlp.up.weight, mlp.up.bias};
  if (l.is_plain() && mlp.up.is_plain() && !mlp.gated && has_linear_beside(first, second))
    return linear_beside(first, second);
  Tensor y = l(x);
  return {std::move(y), mlp.hidden(v)};
}

void add_both(const Tensor& residual, const Linear& a, const Tensor& x, const Linear& b, const Tensor& v) {
  const LinearOperands first{x, a.weight, a.bias}, second{v, b.weight, b.bias};
  if (has_linear_add_both(first, second)) return linear_add_both(first, second, residual);
  a.add_to(residual, x);
  b.add_to(residual, v);
}

}  // namespace ssm::nn
