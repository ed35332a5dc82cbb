#include "ssm/models/causal_lm.h"

#include <utility>

#include "ssm/autograd/tape.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/rms_norm/rms_norm.h"

namespace ssm {
namespace {

// Of the residual with x, where that is defined, added to it.
Tensor normed(const nn::RmsNorm& norm, const Tensor& x, Tensor& residual, DType result) {
  return x.defined() ? add_rms_norm(x, residual, norm.weight, norm.eps, result)
                     : rms_norm(residual, norm.weight, norm.eps, result);
}

}  // namespace

void copy_slot(const ModelState& from, int64_t slot, const ModelState& to, int64_t to_slot) {
  for (size_t layer = 0; layer < from.size(); ++layer) {
    from[layer].for_each_with(to[layer], [&](const Tensor& source, const Tensor& target) {
      if (source.numel() == 0) return;  // a convolution of width 1 keeps nothing
      const Tensor a = source.select(0, slot), b = target.select(0, to_slot);
      copy_bytes(b.raw(), b.device(), a.raw(), a.device(), a.bytes());
    });
  }
}

CausalLm::CausalLm(const nlohmann::json& config, Precision precision, MakeMixer make_mixer)
    : activations_(precision.activations), tied_(config.at("tie_word_embeddings")) {
  const int64_t V = config.at("vocab_size"), M = config.at("hidden_size");
  const float eps = config.at("layer_norm_epsilon");
  embeddings_ = {.rows = V, .width = M};
  for (int64_t layer = config.at("num_hidden_layers"); layer > 0; --layer) {
    layers_.push_back({{.width = M, .eps = eps}, make_mixer(config, precision.compute)});
  }
  norm_f_ = {.width = M, .eps = eps};
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
  Tensor residual = std::move(embeddings);  // [T, M]
  Tensor x;                                 // [T, M], still to be added to the residual, or undefined
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Block& block = layers_[i];
    const MixerState& kept = state.empty() ? none : state[i];
    const bool recorded = current_tape() != nullptr;
    const bool step = !recorded && !state.empty() && !x.defined() && batch.is_step();
    if (step && block.mixer->step(residual, block.norm, batch, kept)) {
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

std::vector<Tensor> CausalLm::Block::forward(Tensor x, Tensor residual, const SequenceBatch& batch,
                                             const MixerState& state, DType activations) const {
  Tensor u = normed(norm, x, residual, activations);  // [T, M]
  x = {};
  return {mixer->forward(std::move(u), batch, state), residual};
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

ModelState CausalLm::make_state(int64_t slots, DType ssm) const {
  ModelState state;
  for (const Block& block : layers_) state.push_back(block.mixer->make_state(slots, {device(), ssm}));
  return state;
}

void CausalLm::Block::visit(nn::Visitor& v) {
  v.child("norm", norm);
  v.child("mixer", *mixer);
}

void CausalLm::visit(nn::Visitor& v) {
  v.child("backbone.embeddings", embeddings_);
  for (size_t i = 0; i < layers_.size(); ++i) v.child("backbone.layers." + std::to_string(i), layers_[i]);
  v.child("backbone.norm_f", norm_f_);
  v.child("lm_head", lm_head_);
}

void CausalLm::untie() {
  if (!tied_) return;
  lm_head_.weight = embeddings_.weight;
  lm_head_.owns_weight = true;
  tied_ = false;
}

void CausalLm::prepare() {
  for (Block& block : layers_) block.mixer->prepare();
  if (tied_) lm_head_.weight = embeddings_.weight;
}

}  // namespace ssm
