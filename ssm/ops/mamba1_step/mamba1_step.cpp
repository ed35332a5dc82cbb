#include "ssm/ops/mamba1_step/mamba1_step.h"

#include "ssm/ops/check.h"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"

namespace ssm {

bool has_mamba1_step([[maybe_unused]] const Mamba1StepArgs& args,
                     [[maybe_unused]] const SequenceBatch& batch) {
#ifdef SSM_CUDA
  return args.x.device().is_cuda() && cuda::has_mamba1_step(args, batch);
#else
  return false;
#endif
}

Tensor mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                   const Tensor& ssm_state) {
  const std::string_view op = "mamba1_step";
  const auto& [x, in_proj, in_bias, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, norm_eps] = args;
  SSM_CHECK(A.defined() && A.rank() == 2, "{}: A has shape {}, expected [E, N]", op, A.shape());
  SSM_CHECK(dt_proj.defined() && dt_proj.rank() == 2, "{}: dt_proj has shape {}, expected [E, R]", op,
            dt_proj.shape());
  SSM_CHECK(x.defined() && x.rank() == 2, "{}: x has shape {}, expected [T, M]", op, x.shape());
  const int64_t T = batch.total(), M = x.size(1), E = A.size(0), N = A.size(1), R = dt_proj.size(1);
  check_first(op, "x", x, {T, M});
  check_activation(op, "in_proj", in_proj, {2 * E, M}, x);
  if (in_bias.defined()) check_parameter(op, "in_bias", in_bias, {2 * E}, x);
  check_activation(op, "x_proj", x_proj, {R + 2 * N, E}, x);
  check_activation(op, "dt_proj", dt_proj, {E, R}, x);
  SSM_CHECK(conv_weight.defined() && conv_weight.shape() == Shape({E, 4}) &&
                conv_weight.dtype() == DType::f32 && conv_weight.device() == x.device(),
            "{}: conv_weight has shape {}, expected f32 [{}, 4]", op, conv_weight.shape(), E);
  SSM_CHECK(A.dtype() == DType::f32 && A.device() == x.device(), "{}: A is {} on {}", op, name_of(A.dtype()),
            name_of(A.device()));
  if (conv_bias.defined()) check_parameter(op, "conv_bias", conv_bias, {E}, x);
  check_parameter(op, "dt_bias", dt_bias, {E}, x);
  check_parameter(op, "D", D, {E}, x);
  SSM_CHECK(conv_state.defined() && ssm_state.defined(), "{}: a state is missing", op);
  check_state(op, conv_state, batch, {3, E}, x);
  check_state(op, ssm_state, batch, {N, E}, x, true);
  SSM_CHECK(has_mamba1_step(args, batch), "{}: no fused step on {} for these operands", op,
            name_of(x.device()));
  Tensor y = Tensor::empty({T, E}, x.dtype(), x.device());
#ifdef SSM_CUDA
  cuda::mamba1_step(args, batch, conv_state, ssm_state, y);
#endif
  return y;
}

}  // namespace ssm
