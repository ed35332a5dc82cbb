// Mamba-2 (Dao & Gu 2024, section 7 and figure 6).
#pragma once

#include "ssm/models/mixer.h"
#include "ssm/nn/modules.h"

#include <memory>
#include <nlohmann/json.hpp>

namespace ssm {

class Mamba2Mixer final : public Mixer {
 public:
  Mamba2Mixer(const nlohmann::json& config, DType compute);

  const nn::Linear& in_proj() const override { return in_proj_; }
  Tensor mix(Tensor projected, const SequenceBatch& batch, const MixerState& state) const override;
  const nn::Linear& out_proj() const override { return out_proj_; }
  bool step(const Tensor& residual, const nn::RmsNorm& norm, const SequenceBatch& batch,
            const MixerState& state) const override;
  MixerState make_state(int64_t slots, StateOptions options) const override;
  void visit(nn::Visitor& v) override;
  void prepare() override;

 private:
  int64_t E_, N_, H_, P_, G_;
  bool D_has_hdim_;
  float dt_min_, dt_max_;
  nn::Linear in_proj_, out_proj_;
  nn::Conv1d conv1d_;
  nn::RmsNorm norm_;
  Tensor dt_bias_;  // [H]
  Tensor A_log_;    // [H]
  Tensor A_;        // [H] = -exp(A_log)
  Tensor D_;        // [H], or [E] when D_has_hdim
};

std::unique_ptr<Mixer> make_mamba2(const nlohmann::json& config, DType compute);

}  // namespace ssm
