#include "ssm/ops/selective_scan/selective_scan.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"
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

// The operands of the forward and of the backward.
void check_operands(const SelectiveScanArgs& args, const SequenceBatch& batch) {
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
}

}  // namespace

Tensor selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                      std::function<Tensor()> delta_again) {
  check_operands(args, batch);
  const int64_t T = batch.total(), E = args.A.size(0), N = args.A.size(1);
  check_state(kOp, state, batch, {N, E}, args.u, true);
  Tensor y = Tensor::empty({T, E}, args.u.dtype(), args.u.device());
  const bool recorded = records(args.u, args.delta, args.A, args.B, args.C, args.D, args.z, args.delta_bias);
  const Tensor initial = recorded ? initial_of(state, batch) : Tensor();
  SSM_DISPATCH(args.u.device(), selective_scan(args, batch, state, y));
  if (!recorded) return y;
  SelectiveScanArgs kept = args;
  if (delta_again) kept.delta = args.delta.borrowed();
  return record(std::move(y), [args = std::move(kept), batch, initial,
                               again = std::move(delta_again)](const Tensor& dy) {
    const OverwrittenGradient du(args.u), ddelta(args.delta), dB(args.B), dC(args.C), dz(args.z);
    SelectiveScanArgs whole = args;
    if (again) whole.delta = again();
    selective_scan_backward(whole, batch, initial, dy,
                            {.du = du.tensor(),
                             .ddelta = ddelta.tensor(),
                             .dA = gradient_sum(args.A),
                             .dB = dB.tensor(),
                             .dC = dC.tensor(),
                             .dD = gradient_sum(args.D),
                             .dz = dz.tensor(),
                             .ddelta_bias = gradient_sum(args.delta_bias)});
  });
}

void selective_scan_backward(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                             const Tensor& dy, const SelectiveScanGrads& grads) {
  check_operands(args, batch);
  const int64_t T = batch.total(), E = args.A.size(0), N = args.A.size(1);
  check_initial(kOp, initial, batch, {N, E}, args.u);
  check_activation(kOp, "dy", dy, {T, E}, args.u);
  check_activation_gradient(kOp, "du", grads.du, {T, E}, args.u);
  check_activation_gradient(kOp, "ddelta", grads.ddelta, {T, E}, args.u);
  check_activation_gradient(kOp, "dz", grads.dz, {T, E}, args.u);
  check_activation_gradient(kOp, "dB", grads.dB, {T, N}, args.u);
  check_activation_gradient(kOp, "dC", grads.dC, {T, N}, args.u);
  check_parameter_gradient(kOp, "dA", grads.dA, {E, N}, args.u);
  check_parameter_gradient(kOp, "dD", grads.dD, {E}, args.u);
  check_parameter_gradient(kOp, "ddelta_bias", grads.ddelta_bias, {E}, args.u);
  SSM_CHECK(args.z.defined() || !grads.dz.defined(), "{}: dz of an absent z", kOp);
  SSM_CHECK(args.D.defined() || !grads.dD.defined(), "{}: dD of an absent D", kOp);
  SSM_CHECK(args.delta_bias.defined() || !grads.ddelta_bias.defined(),
            "{}: ddelta_bias of an absent delta_bias", kOp);
  SSM_DISPATCH(args.u.device(), selective_scan_backward(args, batch, initial, dy, grads));
}

}  // namespace ssm
