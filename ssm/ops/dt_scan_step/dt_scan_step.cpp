#include "ssm/ops/dt_scan_step/dt_scan_step.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/dt_scan_step/dt_scan_step_cuda.h"

namespace ssm {

bool has_dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state) {
  return SSM_CUDA_HAS(args.u.device(), has_dt_scan_step(args, batch, ssm_state));
}

Tensor dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state) {
  constexpr std::string_view kOp = "dt_scan_step";
  const Tensor &u = args.u, &A = args.A;
  SSM_CHECK(u.defined() && u.rank() == 2, "{}: u has shape {}, expected [T, E]", kOp, u.shape());
  const int64_t T = batch.total(), E = u.size(1);
  check_first(kOp, "u", u, {T, E});
  check_activation(kOp, "z", args.z, {T, E}, u);
  SSM_CHECK(
      A.defined() && A.rank() == 2 && A.size(0) == E && A.dtype() == DType::f32 && A.device() == u.device(),
      "{}: A has shape {}, expected f32 [{}, N]", kOp, A.shape(), E);
  const int64_t N = A.size(1);
  SSM_CHECK(defined(args.dt_proj) && shape_of(args.dt_proj).rank() == 2,
            "{}: dt_proj has shape {}, expected [E, R]", kOp, shape_of(args.dt_proj));
  const int64_t R = shape_of(args.dt_proj)[1];
  check_step_weight(kOp, "dt_proj", args.dt_proj, {E, R}, u.dtype(), u.device());
  check_activation(kOp, "dt_B_C", args.dt_B_C, {T, R + 2 * N}, u);
  check_parameter(kOp, "dt_bias", args.dt_bias, {E}, u);
  check_parameter(kOp, "D", args.D, {E}, u);
  SSM_CHECK(ssm_state.defined(), "{}: the state is missing", kOp);
  check_state(kOp, ssm_state, batch, {N, E}, u, true);
  SSM_CHECK(has_dt_scan_step(args, batch, ssm_state), "{}: nothing on {} for these operands", kOp,
            name_of(u.device()));
  Tensor y = Tensor::empty({T, E}, u.dtype(), u.device());
  if constexpr (kHasCuda) cuda::dt_scan_step(args, batch, ssm_state, y);
  return y;
}

}  // namespace ssm
