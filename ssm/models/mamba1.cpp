#include "ssm/models/mamba1.h"

#include "ssm/autograd/tape.h"
#include "ssm/ops/dt_scan_step/dt_scan_step.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/mamba1_step/mamba1_step.h"
#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/selective_scan/selective_scan.h"

namespace ssm {

Mamba1Mixer::Mamba1Mixer(const nlohmann::json& config, DType compute)
    : E_(config.at("intermediate_size")),
      N_(config.at("state_size")),
      R_(config.at("time_step_rank")),
      dt_b_c_eps_(config.at("model_type") == "falcon_mamba" ? config.at("mixer_rms_eps").get<float>()
                                                            : 0.0f) {
  const int64_t M = config.at("hidden_size");
  const bool bias = config.at("use_bias");
  in_proj_ = {.in = M, .out = 2 * E_, .has_bias = bias, .compute = compute};
  x_proj_ = {.in = E_, .out = R_ + 2 * N_, .has_bias = false, .compute = compute};
  dt_proj_ = {.in = R_, .out = E_, .has_bias = true, .compute = compute};
  out_proj_ = {.in = E_, .out = M, .has_bias = bias, .compute = compute};
  conv1d_ = {.channels = E_, .width = config.at("conv_kernel"), .has_bias = config.at("use_conv_bias")};
}

// xz [T, 2E] -> [T, E]
Tensor Mamba1Mixer::mix(Tensor xz, const SequenceBatch& batch, const MixerState& state) const {
  const Tensor z = xz.slice(1, E_, 2 * E_);                         // [T, E]
  const Tensor u = conv1d_(xz.slice(1, 0, E_), batch, state.conv);  // [T, E]
  const Tensor dt_B_C = x_proj_(u);                                 // [T, R + 2N]
  if (dt_proj_.is_plain() && current_tape() == nullptr) {
    const DtScanStepArgs args{.u = u,
                              .z = z,
                              .dt_B_C = dt_B_C,
                              .dt_proj = dt_proj_.weight,
                              .dt_bias = dt_proj_.bias,
                              .A = A_,
                              .D = D_,
                              .dt_B_C_eps = dt_b_c_eps_};
    if (has_dt_scan_step(args, batch, state.ssm)) return dt_scan_step(args, batch, state.ssm);
  }
  Tensor dt = dt_B_C.slice(1, 0, R_);                // [T, R]
  Tensor B = dt_B_C.slice(1, R_, R_ + N_);           // [T, N]
  Tensor C = dt_B_C.slice(1, R_ + N_, R_ + 2 * N_);  // [T, N]
  if (dt_b_c_eps_ > 0) {
    for (Tensor* t : {&dt, &B, &C}) *t = rms_norm(*t, {}, dt_b_c_eps_);
  }
  Tensor delta = dt_proj_.without_bias(dt);  // [T, E], its bias added in the scan
  std::function<Tensor()> again;             // one with an adapter may drop other elements
  if (!dt_proj_.lora) again = [this, dt] { return dt_proj_.without_bias(dt); };
  return selective_scan({.u = u,
                         .delta = std::move(delta),
                         .A = A_,
                         .B = B,
                         .C = C,
                         .D = D_,
                         .z = z,
                         .delta_bias = dt_proj_.bias},
                        batch, state.ssm, std::move(again));  // [T, E]
}

bool Mamba1Mixer::step(const Tensor& residual, const nn::RmsNorm& norm, const SequenceBatch& batch,
                       const MixerState& state) const {
  for (const nn::Linear* l : {&in_proj_, &x_proj_, &dt_proj_, &out_proj_}) {
    if (l->lora) return false;
  }
  const Mamba1StepArgs args{.compute = in_proj_.compute,
                            .norm_weight = norm.weight,
                            .norm_eps = norm.eps,
                            .in_proj = in_proj_.weight,
                            .in_bias = in_proj_.bias,
                            .conv_weight = conv1d_.weight.select(1, 0),
                            .conv_bias = conv1d_.bias,
                            .x_proj = x_proj_.weight,
                            .dt_proj = dt_proj_.weight,
                            .dt_bias = dt_proj_.bias,
                            .A = A_,
                            .D = D_,
                            .out_proj = out_proj_.weight,
                            .out_bias = out_proj_.bias,
                            .dt_B_C_eps = dt_b_c_eps_};
  if (!has_mamba1_step(args, batch)) return false;
  mamba1_step(args, batch, state.conv, state.ssm, residual);
  return true;
}

MixerState Mamba1Mixer::make_state(int64_t slots, StateOptions options) const {
  return {.conv = Tensor::zeros({slots, conv1d_.width - 1, E_}, DType::f32, options.device),
          .ssm = Tensor::zeros({slots, N_, E_}, options.ssm, options.device)};
}

void Mamba1Mixer::visit(nn::Visitor& v) {
  v.tensor("A_log", A_log_, {E_, N_}, nn::Storage::channels_contiguous);
  v.tensor("D", D_, {E_});
  v.child("in_proj", in_proj_);
  v.child("conv1d", conv1d_);
  v.child("x_proj", x_proj_);
  v.child("dt_proj", dt_proj_);
  v.child("out_proj", out_proj_);
}

void Mamba1Mixer::prepare() { A_ = negative_exp(A_log_); }

std::unique_ptr<Mixer> make_mamba1(const nlohmann::json& config, DType compute) {
  return std::make_unique<Mamba1Mixer>(config, compute);
}

}  // namespace ssm
