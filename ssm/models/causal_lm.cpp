#include "ssm/models/causal_lm.h"

#include <algorithm>
#include <utility>

#include "ssm/autograd/tape.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/layer_norm/layer_norm.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/rms_norm/rms_norm.h"

namespace ssm {

void copy_slot(const ModelState& from, int64_t slot, const ModelState& to, int64_t to_slot) {
  for (size_t layer = 0; layer < from.size(); ++layer) to[layer].copy_slot(to_slot, from[layer], slot);
}

CausalLm::CausalLm(const nlohmann::json& config, Precision precision, const Blueprint& blueprint)
    : activations_(precision.activations), names_(blueprint.names), tied_(config.at("tie_word_embeddings")) {
  const int64_t V = config.at("vocab_size"), M = config.at("hidden_size");
  Norm norm = nn::RmsNorm{.width = M, .eps = blueprint.norm_eps};
  if (blueprint.layer_norm) norm = nn::LayerNorm{.width = M, .eps = blueprint.norm_eps};
  embeddings_ = {.rows = V, .width = M};
  const int64_t layers = config.at("num_hidden_layers");
  for (int64_t layer = 0; layer < layers; ++layer) {
    layers_.push_back(
        {names_, norm, blueprint.mixer(layer), norm, blueprint.mlp, blueprint.parallel && blueprint.mlp});
  }
  norm_f_ = norm;
  lm_head_ = {.in = M,
              .out = V,
              .has_bias = false,
              .compute = precision.compute,
              .result = DType::f32,
              .owns_weight = !tied_};
}

Tensor CausalLm::hidden_from(Tensor embeddings, const SequenceBatch& batch, const ModelState& state,
                             const OnLayer& on_layer) const {
  SSM_CHECK(
      embeddings.rank() == 2 && embeddings.size(0) == batch.total() && embeddings.size(1) == hidden_size(),
      "embeddings {} for a batch of {} tokens of width {}", embeddings.shape(), batch.total(), hidden_size());
  const MixerState none;
  UndividedNorm left;                       // by a layer's step for the next one
  Tensor residual = std::move(embeddings);  // [T, M]
  Tensor x;                                 // [T, M], still to be added to the residual, or undefined
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Block& block = layers_[i];
    const MixerState& kept = state.empty() ? none : state[i];
    const bool recorded = current_tape() != nullptr;
    const bool step = !recorded && !state.empty() && !x.defined() && batch.is_step();
    const Block* const next = i + 1 < layers_.size() ? &layers_[i + 1] : nullptr;
    const UndividedNorm ahead = std::exchange(left, {});
    if (step && block.step(residual, batch, kept, activations_, ahead, next, left)) {
      if (on_layer) on_layer(residual);
      continue;
    }
    const std::vector<Tensor> out = recompute_layers_ && recorded
                                        ? recomputed(block, x, residual, batch, kept)
                                        : block.forward(std::move(x), residual, batch, kept, activations_);
    x = out[0];
    residual = out[1];
    if (on_layer) on_layer(add_scaled(residual.clone(), x.to(residual.dtype()), 1.0f));
  }
  return normed(norm_f_, x, residual, activations_);  // [T, M]
}

// Of the residual with x, where that is defined, added to it.
Tensor CausalLm::normed(const Norm& norm, const Tensor& x, Tensor& residual, DType result) {
  if (const auto* layer = std::get_if<nn::LayerNorm>(&norm)) {
    return x.defined() ? add_layer_norm(x, residual, layer->weight, layer->bias, layer->eps, result)
                       : layer_norm(residual, layer->weight, layer->bias, layer->eps, result);
  }
  const auto& rms = std::get<nn::RmsNorm>(norm);
  return x.defined() ? add_rms_norm(x, residual, rms.weight, rms.eps, result)
                     : rms_norm(residual, rms.weight, rms.eps, result);
}

// The same with two norms of one residual.
std::pair<Tensor, Tensor> CausalLm::normed_twice(const Norm& first, const Norm& second, const Tensor& x,
                                                 Tensor& residual, DType result) {
  const auto *a = std::get_if<nn::LayerNorm>(&first), *b = std::get_if<nn::LayerNorm>(&second);
  if (a && b)
    return layer_norms(x, residual, {a->weight, a->bias, a->eps}, {b->weight, b->bias, b->eps}, result);
  Tensor u = normed(first, x, residual, result);
  return {std::move(u), normed(second, {}, residual, result)};
}

std::vector<Tensor> CausalLm::Block::forward(Tensor x, Tensor residual, const SequenceBatch& batch,
                                             const MixerState& state, DType activations) const {
  if (parallel) {
    auto [u, v] = normed_twice(norm, mlp_norm, x, residual, activations);  // [T, M]
    x = mixer->forward(std::move(u), batch, state);
    return {add_scaled(x, (*mlp)(v), 1.0f), residual};
  }
  Tensor u = normed(norm, x, residual, activations);  // [T, M]
  x = mixer->forward(std::move(u), batch, state);
  if (!mlp) return {x, residual};
  u = normed(mlp_norm, x, residual, activations);
  return {(*mlp)(u), residual};
}

const nn::RmsNorm* CausalLm::Block::undivided_norm(int64_t T) const {
  const auto* rms = std::get_if<nn::RmsNorm>(&norm);
  const nn::Linear &in = mixer->in_proj(), &out = mixer->out_proj();
  const bool can = rms && !parallel && in.is_plain() && out.is_plain() && has_linear_of_norm(T, in.weight) &&
                   has_linear_of_norm(T, out.weight);
  return can ? rms : nullptr;
}

bool CausalLm::Block::step(Tensor residual, const SequenceBatch& batch, const MixerState& state,
                           DType activations, const UndividedNorm& ahead, const Block* next,
                           UndividedNorm& left) const {
  const auto* rms = std::get_if<nn::RmsNorm>(&norm);
  const int64_t T = batch.size();
  if (mlp && !mlp->down.adds(T)) return false;
  const bool stepped = rms && !parallel && mixer->step(residual, *rms, batch, state);
  if (!stepped && !mixer->out_proj().adds(T)) return false;
  if (parallel) {
    const auto [u, v] = normed_twice(norm, mlp_norm, {}, residual, activations);
    auto [projected, h] = nn::beside(mixer->in_proj(), u, *mlp, v);
    const Tensor mixed = mixer->mix(std::move(projected), batch, state);
    nn::add_both(residual, mixer->out_proj(), mixed, mlp->down, h);
    return true;
  }
  if (!stepped) {
    const nn::Linear &in = mixer->in_proj(), &out = mixer->out_proj();
    Tensor projected = ahead.x.defined() ? linear_of_norm(ahead, in.weight, in.bias)
                                         : in(normed(norm, {}, residual, activations));
    const Tensor mixed = mixer->mix(std::move(projected), batch, state);
    const auto* const of_next = next && !mlp && undivided_norm(T) ? next->undivided_norm(T) : nullptr;
    if (of_next) {
      left = linear_add_norm({mixed, out.weight, out.bias}, residual, of_next->weight, of_next->eps);
    } else {
      out.add_to(residual, mixed);
    }
  }
  if (mlp) mlp->down.add_to(residual, mlp->hidden(normed(mlp_norm, {}, residual, activations)));
  return true;
}

// The layer runs twice and must begin from the same residual and state both times; it changes both in place.
std::vector<Tensor> CausalLm::recomputed(const Block& block, const Tensor& x, const Tensor& residual,
                                         const SequenceBatch& batch, const MixerState& state) const {
  return checkpoint({x, residual}, [&block, batch, state, start = state.clone(), activations = activations_,
                                    first = true](std::span<const Tensor> in) mutable {
    const MixerState& used = std::exchange(first, false) ? state : start;
    return block.forward(in[0], current_tape() ? in[1] : in[1].clone(), batch, used, activations);
  });
}

Tensor CausalLm::logits(const Tensor& hidden) const { return lm_head_(hidden); }  // [T, V]

ModelState CausalLm::make_state(int64_t slots, DType ssm, const std::shared_ptr<KvBudget>& kv_budget) const {
  ModelState state;
  for (const Block& block : layers_)
    state.push_back(block.mixer->make_state(slots, {device(), ssm, kv_budget}));
  return state;
}

bool CausalLm::has_attention() const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [](const Block& block) { return block.mixer->attends(); });
}

void CausalLm::Block::visit(nn::Visitor& v) {
  const auto child = [&](const std::string& name, Norm& n) {
    std::visit([&](auto& any) { v.child(name, any); }, n);
  };
  child(names.norm, norm);
  v.child(names.mixer, *mixer);
  if (!mlp) return;
  child(names.mlp_norm, mlp_norm);
  v.child(names.mlp, *mlp);
}

void CausalLm::visit(nn::Visitor& v) {
  v.child(names_.embeddings, embeddings_);
  for (size_t i = 0; i < layers_.size(); ++i) v.child(fmt::format("{}.{}", names_.layers, i), layers_[i]);
  std::visit([&](auto& norm) { v.child(names_.norm_f, norm); }, norm_f_);
  v.child(names_.head, lm_head_);
}

void CausalLm::untie() {
  if (!tied_) return;
  lm_head_.weight = embeddings_.weight;
  lm_head_.owns_weight = true;
  tied_ = false;
}

void CausalLm::prepare() {
  for (Block& block : layers_) {
    block.mixer->prepare();
    if (!block.mlp) continue;
    block.mlp->up.prepare();
    block.mlp->down.prepare();
  }
  if (tied_) lm_head_.weight = embeddings_.weight;
}

}  // namespace ssm
