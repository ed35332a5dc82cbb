#include "ssm/ops/ssd_scan/ssd_scan.h"

#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/gradient.h"
#include "ssm/ops/ssd_scan/ssd_scan_cpu.h"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.h"

namespace ssm {

namespace {

constexpr std::string_view kOp = "ssd_scan";

// The operands of the forward and of the backward.
void check_operands(const SsdScanArgs& args, const SequenceBatch& batch) {
  const int64_t T = batch.total(), G = args.groups;
  // H is A's, P and N are what x and B leave for it.
  SSM_CHECK(args.A.defined() && args.A.rank() == 1 && args.A.size(0) >= 1, "{}: A has shape {}, expected [H]",
            kOp, args.A.shape());
  const int64_t H = args.A.size(0);
  SSM_CHECK(G >= 1 && H % G == 0, "{}: {} heads in {} groups", kOp, H, G);
  SSM_CHECK(args.x.defined() && args.x.rank() == 2 && args.x.size(1) >= H && args.x.size(1) % H == 0,
            "{}: x has shape {}, expected [{}, {} heads * P]", kOp, args.x.shape(), T, H);
  SSM_CHECK(args.B.defined() && args.B.rank() == 2 && args.B.size(1) >= G && args.B.size(1) % G == 0,
            "{}: B has shape {}, expected [{}, {} groups * N]", kOp, args.B.shape(), T, G);
  const int64_t P = args.x.size(1) / H, N = args.B.size(1) / G;
  check_first(kOp, "x", args.x, {T, H * P});
  check_activation(kOp, "dt", args.dt, {T, H}, args.x);
  check_parameter(kOp, "A", args.A, {H}, args.x);
  check_activation(kOp, "B", args.B, {T, G * N}, args.x);
  check_activation(kOp, "C", args.C, {T, G * N}, args.x);
  if (args.D.defined()) check_parameter(kOp, "D", args.D, {args.D.numel() == H ? H : H * P}, args.x);
  if (args.dt_bias.defined()) check_parameter(kOp, "dt_bias", args.dt_bias, {H}, args.x);
  SSM_CHECK(args.dt_min <= args.dt_max, "{}: dt_min {} is above dt_max {}", kOp, args.dt_min, args.dt_max);
}

}  // namespace

Tensor ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state) {
  check_operands(args, batch);
  const int64_t H = args.A.size(0), P = args.x.size(1) / H, N = args.B.size(1) / args.groups;
  check_state(kOp, state, batch, {H, N, P}, args.x, true);
  Tensor y = Tensor::empty({batch.total(), H * P}, args.x.dtype(), args.x.device());
  const bool recorded = records(args.x, args.dt, args.A, args.B, args.C, args.D, args.dt_bias);
  const Tensor initial = recorded ? initial_of(state, batch) : Tensor();
  SSM_DISPATCH(args.x.device(), ssd_scan(args, batch, state, y));
  if (!recorded) return y;
  return record(std::move(y), [args, batch, initial](const Tensor& dy) {
    const OverwrittenGradient dx(args.x), ddt(args.dt), dB(args.B), dC(args.C);
    ssd_scan_backward(args, batch, initial, dy,
                      {.dx = dx.tensor(),
                       .ddt = ddt.tensor(),
                       .dA = gradient_sum(args.A),
                       .dB = dB.tensor(),
                       .dC = dC.tensor(),
                       .dD = gradient_sum(args.D),
                       .ddt_bias = gradient_sum(args.dt_bias)});
  });
}

void ssd_scan_backward(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                       const Tensor& dy, const SsdScanGrads& grads, const Tensor& dlast) {
  check_operands(args, batch);
  const int64_t H = args.A.size(0), P = args.x.size(1) / H, N = args.B.size(1) / args.groups;
  check_initial(kOp, initial, batch, {H, N, P}, args.x);
  check_activation(kOp, "dy", dy, args.x.shape(), args.x);
  check_activation_gradient(kOp, "dx", grads.dx, args.x.shape(), args.x);
  check_activation_gradient(kOp, "ddt", grads.ddt, args.dt.shape(), args.x);
  check_activation_gradient(kOp, "dB", grads.dB, args.B.shape(), args.x);
  check_activation_gradient(kOp, "dC", grads.dC, args.C.shape(), args.x);
  check_parameter_gradient(kOp, "dA", grads.dA, {H}, args.x);
  check_parameter_gradient(kOp, "ddt_bias", grads.ddt_bias, {H}, args.x);
  SSM_CHECK(args.D.defined() || !grads.dD.defined(), "{}: dD of an absent D", kOp);
  SSM_CHECK(args.dt_bias.defined() || !grads.ddt_bias.defined(), "{}: ddt_bias of an absent dt_bias", kOp);
  if (args.D.defined()) check_parameter_gradient(kOp, "dD", grads.dD, args.D.shape(), args.x);
  check_initial(kOp, grads.dinitial, batch, {H, N, P}, args.x, "dinitial");
  check_initial(kOp, dlast, batch, {H, N, P}, args.x, "dlast");
  SSM_DISPATCH(args.x.device(), ssd_scan_backward(args, batch, initial, dy, grads, dlast));
}

}  // namespace ssm
