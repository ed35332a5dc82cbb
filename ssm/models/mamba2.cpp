#include "ssm/models/mamba2.h"

#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/mamba2_step/mamba2_step.h"
#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm {

Mamba2Mixer::Mamba2Mixer(const nlohmann::json& config, DType compute)
    : N_(config.at("state_size")),
      H_(config.at("num_heads")),
      P_(config.at("head_dim")),
      G_(config.at("n_groups")),
      D_has_hdim_(config.at("D_has_hdim")),
      dt_min_(config.at("time_step_limit").at(0)),
      dt_max_(config.at("time_step_limit").at(1)) {
  const int64_t M = config.at("hidden_size");
  const bool bias = config.at("use_bias");
  E_ = H_ * P_;
  const int64_t C = E_ + 2 * G_ * N_;
  in_proj_ = {.in = M, .out = E_ + C + H_, .has_bias = bias, .compute = compute};
  out_proj_ = {.in = E_, .out = M, .has_bias = bias, .compute = compute};
  conv1d_ = {.channels = C, .width = config.at("conv_kernel"), .has_bias = config.at("use_conv_bias")};
  norm_ = {.width = E_, .eps = config.at("layer_norm_epsilon")};
}

// zxBCdt [T, E + C + H] -> [T, E]
Tensor Mamba2Mixer::mix(Tensor zxBCdt, const SequenceBatch& batch, const MixerState& state) const {
  const int64_t GN = G_ * N_, C = E_ + 2 * GN;
  const Tensor z = zxBCdt.slice(1, 0, E_);                                     // [T, E]
  const Tensor dt = zxBCdt.slice(1, E_ + C, E_ + C + H_);                      // [T, H]
  const Tensor xBC = conv1d_(zxBCdt.slice(1, E_, E_ + C), batch, state.conv);  // [T, C]
  const Tensor y = ssd_scan({.x = xBC.slice(1, 0, E_),
                             .dt = dt,
                             .A = A_,
                             .B = xBC.slice(1, E_, E_ + GN),
                             .C = xBC.slice(1, E_ + GN, C),
                             .D = D_,
                             .dt_bias = dt_bias_,
                             .groups = G_,
                             .dt_min = dt_min_,
                             .dt_max = dt_max_},
                            batch, state.ssm);               // [T, E]
  return gated_rms_norm(y, z, norm_.weight, G_, norm_.eps);  // [T, E]
}

bool Mamba2Mixer::step(const Tensor& residual, const nn::RmsNorm& norm, const SequenceBatch& batch,
                       const MixerState& state) const {
  for (const nn::Linear* l : {&in_proj_, &out_proj_}) {
    if (l->lora) return false;
  }
  const Mamba2StepArgs args{.compute = in_proj_.compute,
                            .norm_weight = norm.weight,
                            .norm_eps = norm.eps,
                            .in_proj = in_proj_.weight,
                            .in_bias = in_proj_.bias,
                            .conv_weight = conv1d_.weight.select(1, 0),
                            .conv_bias = conv1d_.bias,
                            .A = A_,
                            .dt_bias = dt_bias_,
                            .D = D_,
                            .gate_weight = norm_.weight,
                            .gate_eps = norm_.eps,
                            .out_proj = out_proj_.weight,
                            .out_bias = out_proj_.bias,
                            .groups = G_,
                            .dt_min = dt_min_,
                            .dt_max = dt_max_};
  if (!has_mamba2_step(args, batch, state.ssm)) return false;
  mamba2_step(args, batch, state.conv, state.ssm, residual);
  return true;
}

MixerState Mamba2Mixer::make_state(int64_t slots, StateOptions options) const {
  return {.conv = Tensor::zeros({slots, conv1d_.width - 1, conv1d_.channels}, DType::f32, options.device),
          .ssm = Tensor::zeros({slots, H_, N_, P_}, options.ssm, options.device)};
}

void Mamba2Mixer::visit(nn::Visitor& v) {
  v.tensor("dt_bias", dt_bias_, {H_});
  v.tensor("A_log", A_log_, {H_});
  v.tensor("D", D_, {D_has_hdim_ ? E_ : H_});
  v.child("in_proj", in_proj_);
  v.child("conv1d", conv1d_);
  v.child("norm", norm_);
  v.child("out_proj", out_proj_);
}

void Mamba2Mixer::prepare() { A_ = negative_exp(A_log_); }

std::unique_ptr<Mixer> make_mamba2(const nlohmann::json& config, DType compute) {
  return std::make_unique<Mamba2Mixer>(config, compute);
}

}  // namespace ssm
