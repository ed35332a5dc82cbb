// CausalLm: embedding, layers of norm and mixer, of some families also of a norm and an MLP, with an f32
// residual, a final norm, a head. Written once for every family; which one it is lies in its blueprint.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "ssm/models/mixer.h"
#include "ssm/nn/modules.h"
#include "ssm/ops/linear/linear.h"

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

// A family's names of the modules, as in its checkpoints.
struct ModuleNames {
  std::string embeddings = "backbone.embeddings", layers = "backbone.layers", norm_f = "backbone.norm_f",
              head = "lm_head";
  std::string norm = "norm", mixer = "mixer", mlp_norm = "norm2", mlp = "mlp";  // of a layer
};

// What a family makes of a config.
struct Blueprint {
  ModuleNames names = {};
  bool layer_norm = false;  // else RMS norms
  float norm_eps = 1e-5f;
  std::function<std::unique_ptr<Mixer>(int64_t layer)> mixer;
  std::optional<nn::Mlp> mlp = {};  // one in each layer, after the mixer
  bool parallel = false;            // or beside it: both read the residual before either is added
};

class CausalLm {
 public:
  // `config` is a full one in Transformers' key names.
  CausalLm(const nlohmann::json& config, Precision precision, const Blueprint& blueprint);
  CausalLm(const CausalLm&) = delete;  // its layers refer to its names
  CausalLm& operator=(const CausalLm&) = delete;

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

  // Zeros, where the model is.
  ModelState make_state(int64_t slots, DType ssm = DType::f32,
                        const std::shared_ptr<KvBudget>& kv_budget = nullptr) const;
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
  const ModuleNames& names() const { return names_; }
  bool has_attention() const;
  void untie();  // a head of its own, which begins as the embedding
  Device device() const { return device_of(embeddings_.weight); }

 private:
  using Norm = std::variant<nn::RmsNorm, nn::LayerNorm>;
  static Tensor normed(const Norm& norm, const Tensor& x, Tensor& residual, DType result);
  static std::pair<Tensor, Tensor> normed_twice(const Norm& first, const Norm& second, const Tensor& x,
                                                Tensor& residual, DType result);

  struct Block {
    const ModuleNames& names;
    Norm norm;
    std::unique_ptr<Mixer> mixer;
    Norm mlp_norm;  // of the MLP, where there is one
    std::optional<nn::Mlp> mlp;
    bool parallel;
    void visit(nn::Visitor& v);
    // A decode step that adds to the residual in place, where there is a way: on a card. `ahead` is this
    // layer's norm, where the layer before left it; `left` becomes that of `next`.
    bool step(Tensor residual, const SequenceBatch& batch, const MixerState& state, DType activations,
              const UndividedNorm& ahead, const Block* next, UndividedNorm& left) const;
    // The norm before the mixer, where linear_of_norm can be it; null where not.
    const nn::RmsNorm* undivided_norm(int64_t T) const;
    // (x, residual) -> (the layer's output, the residual it is to be added to); x undefined in the first.
    std::vector<Tensor> forward(Tensor x, Tensor residual, const SequenceBatch& batch,
                                const MixerState& state, DType activations) const;
  };

  std::vector<Tensor> recomputed(const Block& block, const Tensor& x, const Tensor& residual,
                                 const SequenceBatch& batch, const MixerState& state) const;

  DType activations_;
  ModuleNames names_;
  nn::Embedding embeddings_;
  std::vector<Block> layers_;
  Norm norm_f_;
  bool tied_;
  bool recompute_layers_ = false;
  nn::Linear lm_head_;  // its weight is the embedding's when tied
};

}  // namespace ssm
