// Attention as a layer's mixer: GPT-NeoX's (Black et al. 2022) and that of mamba_ssm's hybrids (`MHA`), where
// a short convolution may come before the positions.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "ssm/models/mixer.h"
#include "ssm/nn/modules.h"
#include "ssm/ops/attention/attention.h"

namespace ssm {

class AttentionMixer final : public Mixer {
 public:
  struct Names {
    std::string_view in, out;
  };
  AttentionMixer(const AttentionHeads& heads, const Names& names, const nn::Linear& in, const nn::Linear& out,
                 const nn::Conv1d& conv);

  const nn::Linear& in_proj() const override { return in_proj_; }
  Tensor mix(Tensor projected, const SequenceBatch& batch, const MixerState& state) const override;
  const nn::Linear& out_proj() const override { return out_proj_; }
  MixerState make_state(int64_t slots, StateOptions options) const override;
  bool attends() const override { return true; }
  void visit(nn::Visitor& v) override;
  void prepare() override;

 private:
  AttentionHeads heads_;
  Names names_;
  nn::Linear in_proj_, out_proj_;
  nn::Conv1d conv1d_;  // of width 0: none
};

std::unique_ptr<Mixer> make_neox_attention(const nlohmann::json& config, DType compute);
std::unique_ptr<Mixer> make_hybrid_attention(const nlohmann::json& config, DType compute);  // of attn_cfg

}  // namespace ssm
