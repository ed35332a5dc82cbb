#include "ssm/ops/mamba1_step/mamba1_step.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/mamba1_step/mamba1_step_cuda.h"

namespace ssm {

bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch) {
  return SSM_CUDA_HAS(device_of(args.in_proj), has_mamba1_step(args, batch));
}

void mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual) {
  const std::string_view op = "mamba1_step";
  const Tensor &A = args.A, &first = residual, &weight = args.conv_weight;
  SSM_CHECK(A.defined() && A.rank() == 2, "{}: A has shape {}, expected [E, N]", op, A.shape());
  SSM_CHECK(defined(args.dt_proj) && shape_of(args.dt_proj).rank() == 2,
            "{}: dt_proj has shape {}, expected [E, R]", op, shape_of(args.dt_proj));
  SSM_CHECK(residual.defined() && residual.rank() == 2, "{}: residual has shape {}, expected [T, M]", op,
            residual.shape());
  const int64_t T = batch.total(), M = residual.size(1), E = A.size(0), N = A.size(1),
                R = shape_of(args.dt_proj)[1];
  SSM_CHECK(residual.size(0) == T && residual.dtype() == DType::f32 && residual.stride(1) == 1,
            "{}: residual is {} {}, expected f32 [{}, {}]", op, name_of(residual.dtype()), residual.shape(),
            T, M);
  const auto check_matrix = [&](std::string_view name, const Weight& w, const Shape& shape) {
    check_step_weight(op, name, w, shape, args.compute, residual.device());
  };
  check_matrix("in_proj", args.in_proj, {2 * E, M});
  check_parameter(op, "norm_weight", args.norm_weight, {M}, first);
  if (args.in_bias.defined()) check_parameter(op, "in_bias", args.in_bias, {2 * E}, first);
  check_matrix("x_proj", args.x_proj, {R + 2 * N, E});
  check_matrix("dt_proj", args.dt_proj, {E, R});
  check_matrix("out_proj", args.out_proj, {M, E});
  if (args.out_bias.defined()) check_parameter(op, "out_bias", args.out_bias, {M}, first);
  SSM_CHECK(weight.defined() && weight.shape() == Shape({E, 4}) && weight.dtype() == DType::f32 &&
                weight.device() == first.device(),
            "{}: conv_weight has shape {}, expected f32 [{}, 4]", op, weight.shape(), E);
  SSM_CHECK(A.dtype() == DType::f32 && A.device() == first.device(), "{}: A is {} on {}", op,
            name_of(A.dtype()), name_of(A.device()));
  if (args.conv_bias.defined()) check_parameter(op, "conv_bias", args.conv_bias, {E}, first);
  check_parameter(op, "dt_bias", args.dt_bias, {E}, first);
  check_parameter(op, "D", args.D, {E}, first);
  SSM_CHECK(conv_state.defined() && ssm_state.defined(), "{}: a state is missing", op);
  check_state(op, conv_state, batch, {3, E}, first);
  check_state(op, ssm_state, batch, {N, E}, first, true);
  SSM_CHECK(has_mamba1_step(args, batch), "{}: no fused step on {} for these operands", op,
            name_of(first.device()));
  if constexpr (kHasCuda) cuda::mamba1_step(args, batch, conv_state, ssm_state, residual);
}

}  // namespace ssm
