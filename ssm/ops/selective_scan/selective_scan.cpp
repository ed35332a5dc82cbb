#include "ssm/ops/selective_scan/selective_scan.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/selective_scan/selective_scan_cpu.h"

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
  check_operand(kOp, "u", args.u, {T, E});
  check_operand(kOp, "delta", args.delta, {T, E});
  check_operand(kOp, "B", args.B, {T, N});
  check_operand(kOp, "C", args.C, {T, N});
  if (args.D.defined()) check_operand(kOp, "D", args.D, {E});
  if (args.z.defined()) check_operand(kOp, "z", args.z, {T, E});
  if (args.delta_bias.defined()) check_operand(kOp, "delta_bias", args.delta_bias, {E});
  check_state(kOp, state, batch, {N, E});
  Tensor y = Tensor::empty({T, E}, DType::f32, args.u.device());
  SSM_DISPATCH(args.u.device(), selective_scan(args, batch, state, y));
  return y;
}

}  // namespace ssm
