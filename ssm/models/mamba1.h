// Mamba-1 (Gu & Dao 2023, figure 3). FalconMamba is the same with weightless norms on dt, B and C.
#pragma once

#include "ssm/models/mixer.h"
#include "ssm/nn/modules.h"

#include <memory>
#include <nlohmann/json.hpp>

namespace ssm {

class Mamba1Mixer final : public Mixer {
 public:
  Mamba1Mixer(const nlohmann::json& config, DType compute);

  const nn::Linear& in_proj() const override { return in_proj_; }
  Tensor mix(Tensor projected, const SequenceBatch& batch, const MixerState& state) const override;
  const nn::Linear& out_proj() const override { return out_proj_; }
  bool step(const Tensor& residual, const nn::RmsNorm& norm, const SequenceBatch& batch,
            const MixerState& state) const override;
  MixerState make_state(int64_t slots, StateOptions options) const override;
  void visit(nn::Visitor& v) override;
  void prepare() override;

 private:
  int64_t E_, N_, R_;
  float dt_b_c_eps_;  // of FalconMamba's norms; 0: none
  nn::Linear in_proj_, x_proj_, dt_proj_, out_proj_;
  nn::Conv1d conv1d_;
  Tensor A_log_;  // [E, N]
  Tensor A_;      // [E, N] = -exp(A_log)
  Tensor D_;      // [E]
};

std::unique_ptr<Mixer> make_mamba1(const nlohmann::json& config, DType compute);

}  // namespace ssm
