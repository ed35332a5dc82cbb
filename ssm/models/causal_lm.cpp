#include "ssm/models/causal_lm.h"

#include "ssm/ops/rms_norm/rms_norm.h"

namespace ssm {

CausalLm::CausalLm(const nlohmann::json& config, Precision precision, MakeMixer make_mixer)
    : activations_(precision.activations), tied_(config.at("tie_word_embeddings")) {
  const int64_t V = config.at("vocab_size"), M = config.at("hidden_size");
  const float eps = config.at("layer_norm_epsilon");
  embeddings_ = {.rows = V, .width = M, .weight = {}};
  for (int64_t layer = config.at("num_hidden_layers"); layer > 0; --layer) {
    layers_.push_back({{.width = M, .eps = eps, .weight = {}}, make_mixer(config, precision.compute)});
  }
  norm_f_ = {.width = M, .eps = eps, .weight = {}};
  lm_head_ = {.in = M,
              .out = V,
              .has_bias = false,
              .compute = precision.compute,
              .result = DType::f32,
              .weight = {},
              .bias = {}};
}

Tensor CausalLm::hidden(const Tensor& ids, const SequenceBatch& batch, const ModelState& state) const {
  SSM_CHECK(ids.rank() == 1 && ids.size(0) == batch.total(), "{} ids for a batch of {} tokens", ids.numel(),
            batch.total());
  const MixerState none;
  const Tensor residual = embeddings_(ids);  // [T, M]
  Tensor x;                                  // [T, M], still to be added to the residual, or undefined
  const auto normed = [&](const nn::RmsNorm& norm) {
    return x.defined() ? add_rms_norm(x, residual, norm.weight, norm.eps, activations_)
                       : rms_norm(residual, norm.weight, norm.eps, activations_);
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const auto& [norm, mixer] = layers_[i];
    const bool step = !state.empty() && !x.defined() && batch.is_step();
    if (step && mixer->step(residual, norm, batch, state[i])) continue;
    x = mixer->forward(normed(norm), batch, state.empty() ? none : state[i]);  // [T, M]
  }
  return normed(norm_f_);  // [T, M]
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
  if (!tied_) v.child("lm_head", lm_head_);
}

void CausalLm::prepare() {
  for (Block& block : layers_) block.mixer->prepare();
  if (tied_) lm_head_.weight = embeddings_.weight;
}

}  // namespace ssm
