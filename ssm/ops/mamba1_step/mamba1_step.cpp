#include "ssm/ops/mamba1_step/mamba1_step.h"

#include "ssm/ops/check.h"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"

namespace ssm {

bool has_mamba1_step([[maybe_unused]] const Mamba1StepArgs& args, [[maybe_unused]] const SequenceBatch& batch,
                     [[maybe_unused]] Device device) {
#ifdef SSM_CUDA
  return device.is_cuda() && cuda::has_mamba1_step(args, batch);
#else
  return false;
#endif
}

Tensor mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                   const Tensor& ssm_state) {
  const std::string_view op = "mamba1_step";
  const auto& [xz, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, norm_eps] = args;
  SSM_CHECK(A.defined() && A.rank() == 2, "{}: A has shape {}, expected [E, N]", op, A.shape());
  SSM_CHECK(dt_proj.defined() && dt_proj.rank() == 2, "{}: dt_proj has shape {}, expected [E, R]", op,
            dt_proj.shape());
  const int64_t T = batch.total(), E = A.size(0), N = A.size(1), R = dt_proj.size(1);
  check_first(op, "xz", xz, {T, 2 * E});
  check_activation(op, "x_proj", x_proj, {R + 2 * N, E}, xz);
  check_activation(op, "dt_proj", dt_proj, {E, R}, xz);
  SSM_CHECK(conv_weight.defined() && conv_weight.shape() == Shape({E, 4}) &&
                conv_weight.dtype() == DType::f32 && conv_weight.device() == xz.device(),
            "{}: conv_weight has shape {}, expected f32 [{}, 4]", op, conv_weight.shape(), E);
  SSM_CHECK(A.dtype() == DType::f32 && A.device() == xz.device(), "{}: A is {} on {}", op, name_of(A.dtype()),
            name_of(A.device()));
  if (conv_bias.defined()) check_parameter(op, "conv_bias", conv_bias, {E}, xz);
  check_parameter(op, "dt_bias", dt_bias, {E}, xz);
  check_parameter(op, "D", D, {E}, xz);
  SSM_CHECK(conv_state.defined() && ssm_state.defined(), "{}: a state is missing", op);
  check_state(op, conv_state, batch, {3, E}, xz);
  check_state(op, ssm_state, batch, {N, E}, xz, true);
  SSM_CHECK(has_mamba1_step(args, batch, xz.device()), "{}: no fused step on {} for these operands", op,
            name_of(xz.device()));
  Tensor y = Tensor::empty({T, E}, xz.dtype(), xz.device());
#ifdef SSM_CUDA
  cuda::mamba1_step(args, batch, conv_state, ssm_state, y);
#endif
  return y;
}

}  // namespace ssm
