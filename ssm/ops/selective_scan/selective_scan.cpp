#include "ssm/ops/selective_scan/selective_scan.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/selective_scan/selective_scan_cpu.h"
#include "ssm/ops/selective_scan/selective_scan_cuda.h"

namespace ssm {
namespace {

constexpr std::string_view kOp = "selective_scan";

// [E, N] and f32; of its strides nothing is asked.
void check_A(const Tensor& A, int64_t E) {
  SSM_CHECK(A.defined(), "{}: A is missing, expected [{}, N]", kOp, E);
  SSM_CHECK(A.rank() == 2 && A.size(0) == E && A.size(1) >= 1, "{}: A has shape {}, expected [{}, N]", kOp,
            A.shape(), E);
  SSM_CHECK(A.dtype() == DType::f32, "{}: A is {}, expected f32", kOp, name_of(A.dtype()));
}

}  // namespace

Tensor selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state) {
  SSM_CHECK(args.u.defined() && args.u.rank() == 2, "{}: u has shape {}, expected [T, E]", kOp,
            args.u.shape());
  const int64_t T = batch.total(), E = args.u.size(1);
  check_A(args.A, E);
  const int64_t N = args.A.size(1);
  check_first(kOp, "u", args.u, {T, E});
  SSM_CHECK(args.A.device() == args.u.device(), "{}: A is on {}, u on {}", kOp, name_of(args.A.device()),
            name_of(args.u.device()));
  check_activation(kOp, "delta", args.delta, {T, E}, args.u);
  check_activation(kOp, "B", args.B, {T, N}, args.u);
  check_activation(kOp, "C", args.C, {T, N}, args.u);
  if (args.D.defined()) check_parameter(kOp, "D", args.D, {E}, args.u);
  if (args.z.defined()) check_activation(kOp, "z", args.z, {T, E}, args.u);
  if (args.delta_bias.defined()) check_parameter(kOp, "delta_bias", args.delta_bias, {E}, args.u);
  check_state(kOp, state, batch, {N, E}, args.u, true);
  Tensor y = Tensor::empty({T, E}, args.u.dtype(), args.u.device());
  SSM_DISPATCH(args.u.device(), selective_scan(args, batch, state, y));
  return y;
}

}  // namespace ssm
