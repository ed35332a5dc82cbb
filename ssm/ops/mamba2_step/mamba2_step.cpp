#include "ssm/ops/mamba2_step/mamba2_step.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/mamba2_step/mamba2_step_cuda.h"

namespace ssm {

bool has_mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state) {
  return ssm_state.defined() && SSM_CUDA_HAS(ssm_state.device(), has_mamba2_step(args, batch, ssm_state));
}

void mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual) {
  const std::string_view op = "mamba2_step";
  const Tensor &first = residual, &weight = args.conv_weight;
  SSM_CHECK(residual.defined() && residual.rank() == 2, "{}: residual has shape {}, expected [T, M]", op,
            residual.shape());
  SSM_CHECK(ssm_state.defined() && ssm_state.rank() == 4 && conv_state.defined(),
            "{}: state has shape {}, expected [S, H, N, P]", op, ssm_state.shape());
  const int64_t T = batch.total(), H = ssm_state.size(1), N = ssm_state.size(2), P = ssm_state.size(3);
  const int64_t E = H * P, C = E + 2 * args.groups * N;
  const int64_t M = residual.size(1), width = E + C + H;
  SSM_CHECK(residual.size(0) == T && residual.dtype() == DType::f32 && residual.stride(1) == 1,
            "{}: residual is {} {}, expected f32 [{}, {}]", op, name_of(residual.dtype()), residual.shape(),
            T, M);
  check_step_weight(op, "in_proj", args.in_proj, {width, M}, args.compute, residual.device());
  check_parameter(op, "norm_weight", args.norm_weight, {M}, first);
  if (args.in_bias.defined()) check_parameter(op, "in_bias", args.in_bias, {width}, first);
  SSM_CHECK(weight.defined() && weight.shape() == Shape({C, 4}) && weight.dtype() == DType::f32 &&
                weight.device() == first.device(),
            "{}: conv_weight has shape {}, expected f32 [{}, 4]", op, weight.shape(), C);
  if (args.conv_bias.defined()) check_parameter(op, "conv_bias", args.conv_bias, {C}, first);
  check_parameter(op, "A", args.A, {H}, first);
  check_parameter(op, "dt_bias", args.dt_bias, {H}, first);
  check_parameter(op, "D", args.D, {args.D.defined() && args.D.numel() == E ? E : H}, first);
  check_parameter(op, "gate_weight", args.gate_weight, {E}, first);
  check_step_weight(op, "out_proj", args.out_proj, {M, E}, args.compute, residual.device());
  if (args.out_bias.defined()) check_parameter(op, "out_bias", args.out_bias, {M}, first);
  SSM_CHECK(args.groups >= 1 && H % args.groups == 0, "{}: {} groups of {} heads", op, args.groups, H);
  check_state(op, conv_state, batch, {3, C}, first);
  check_state(op, ssm_state, batch, {H, N, P}, first, true);
  SSM_CHECK(has_mamba2_step(args, batch, ssm_state), "{}: no fused step on {} for these operands", op,
            name_of(first.device()));
  if constexpr (kHasCuda) cuda::mamba2_step(args, batch, conv_state, ssm_state, residual);
}

}  // namespace ssm
