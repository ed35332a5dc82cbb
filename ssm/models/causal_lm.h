// CausalLm: embedding, layers of norm and mixer with an f32 residual, a final norm, a head. Written once for
// every family; which one it is lies in its mixers.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "ssm/models/mixer.h"
#include "ssm/nn/modules.h"

namespace ssm {

using ModelState = std::vector<MixerState>;  // one a layer

// A slot of one state into a slot of another, of the same model on the same device.
void copy_slot(const ModelState& from, int64_t slot, const ModelState& to, int64_t to_slot);

// Types of activations. A matrix product rounds its input to `compute`; between ops they are `activations`,
// which on a card is the same type and on a CPU f32.
struct Precision {
  DType compute = DType::f32;
  DType activations = DType::f32;
};

class CausalLm {
 public:
  using MakeMixer = std::unique_ptr<Mixer> (*)(const nlohmann::json& config, DType compute);

  // `config` is a full one in Transformers' key names.
  CausalLm(const nlohmann::json& config, Precision precision, MakeMixer make_mixer);

  // ids [T] i32 -> the final hidden states [T, M], after the last norm.
  Tensor hidden(const Tensor& ids, const SequenceBatch& batch, const ModelState& state) const {
    return hidden_from(embeddings_(ids), batch, state);
  }
  Tensor embed(const Tensor& ids) const { return embeddings_(ids); }  // [T] i32 -> [T, M]
  // The same from embeddings [T, M], whose memory is taken over. `on_layer` sees the residual [T, M] after
  // each layer; not where a tape records.
  using OnLayer = std::function<void(const Tensor& residual)>;
  Tensor hidden_from(Tensor embeddings, const SequenceBatch& batch, const ModelState& state,
                     const OnLayer& on_layer = {}) const;
  // Rows of hidden states [T, M] -> logits [T, V] f32.
  Tensor logits(const Tensor& hidden) const;

  ModelState make_state(int64_t slots, DType ssm = DType::f32) const;  // zeros, where the model is
  void visit(nn::Visitor& v);
  void prepare();
  // [V, M], for a loss that makes logits block by block.
  const Weight& head() const { return lm_head_.weight; }
  const std::optional<nn::Lora>& head_lora() const { return lm_head_.lora; }
  // Where a tape records: keep of a layer its input only and run it again for its gradient.
  void recompute_layers(bool on) { recompute_layers_ = on; }

  int64_t vocab_size() const { return embeddings_.rows; }  // V, padding included
  int64_t hidden_size() const { return embeddings_.width; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  bool tied() const { return tied_; }
  void untie();  // a head of its own, which begins as the embedding
  Device device() const { return device_of(embeddings_.weight); }

 private:
  struct Block {
    nn::RmsNorm norm;
    std::unique_ptr<Mixer> mixer;
    void visit(nn::Visitor& v);
    // (x, residual) -> (the mixer's output, the residual it is to be added to); x undefined in the first.
    std::vector<Tensor> forward(Tensor x, Tensor residual, const SequenceBatch& batch,
                                const MixerState& state, DType activations) const;
  };

  std::vector<Tensor> recomputed(const Block& block, const Tensor& x, const Tensor& residual,
                                 const SequenceBatch& batch, const MixerState& state) const;

  DType activations_;
  nn::Embedding embeddings_;
  std::vector<Block> layers_;
  nn::RmsNorm norm_f_;
  bool tied_;
  bool recompute_layers_ = false;
  nn::Linear lm_head_;  // its weight is the embedding's when tied
};

}  // namespace ssm
