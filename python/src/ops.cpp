// The ops over rows [T, ...] of ragged sequences; ssm_cpp.ops gives them the layouts of mamba_ssm.
#include <numeric>

#include "python/src/bindings.h"
#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/cross_entropy/cross_entropy.h"
#include "ssm/ops/selective_scan/selective_scan.h"
#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm::python {
namespace {

using Lengths = std::vector<int64_t>;

SequenceBatch batch_of(const Lengths& lengths) {  // sequence b has slot b
  std::vector<int32_t> slots(lengths.size());
  std::iota(slots.begin(), slots.end(), 0);
  return SequenceBatch(lengths, slots);
}

// What an op reads and writes: the initial states of a batch, not in their own memory, or zeros.
Tensor state_of(const Tensor& initial, const Shape& shape, Device device) {
  return initial.defined() ? initial.clone() : Tensor::zeros(shape, DType::f32, device);
}

template <class... Tensors>
nb::tuple arrays_of(const Tensors&... tensors) {
  return nb::make_tuple(array_of(tensors)...);
}

SelectiveScanArgs scan_args(const InArray& u, const InArray& delta, const InArray& A, const InArray& B,
                            const InArray& C, const OptionalIn& D, const OptionalIn& z,
                            const OptionalIn& delta_bias, bool delta_softplus) {
  return {.u = tensor_of(u, "u"),
          .delta = tensor_of(delta, "delta"),
          .A = tensor_of(A, "A"),
          .B = tensor_of(B, "B"),
          .C = tensor_of(C, "C"),
          .D = tensor_of(D, "D"),
          .z = tensor_of(z, "z"),
          .delta_bias = tensor_of(delta_bias, "delta_bias"),
          .delta_softplus = delta_softplus};
}

nb::tuple scan(const InArray& u, const InArray& delta, const InArray& A, const InArray& B, const InArray& C,
               const OptionalIn& D, const OptionalIn& z, const OptionalIn& delta_bias, bool delta_softplus,
               const Lengths& lengths, const OptionalIn& initial) {
  const SelectiveScanArgs args = scan_args(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const Tensor before = tensor_of(initial, "initial");
  Tensor h;
  const Tensor y = unlocked([&] {
    SSM_CHECK(args.A.rank() == 2, "selective_scan: A has shape {}, expected [E, N]", args.A.shape());
    h = state_of(before, {std::ssize(lengths), args.A.size(1), args.A.size(0)}, args.A.device());
    return selective_scan(args, batch_of(lengths), h);
  });
  return arrays_of(y, h);
}

nb::tuple scan_backward(const InArray& u, const InArray& delta, const InArray& A, const InArray& B,
                        const InArray& C, const OptionalIn& D, const OptionalIn& z,
                        const OptionalIn& delta_bias, bool delta_softplus, const Lengths& lengths,
                        const OptionalIn& initial, const InArray& dy) {
  const SelectiveScanArgs args = scan_args(u, delta, A, B, C, D, z, delta_bias, delta_softplus);
  const Tensor h = tensor_of(initial, "initial"), from = tensor_of(dy, "dy");
  const SelectiveScanGrads g{.du = Tensor::empty_like(args.u),
                             .ddelta = Tensor::empty_like(args.delta),
                             .dA = Tensor::zeros_like(args.A, DType::f32),
                             .dB = Tensor::empty_like(args.B),
                             .dC = Tensor::empty_like(args.C),
                             .dD = Tensor::zeros_like(args.D, DType::f32),
                             .dz = Tensor::empty_like(args.z),
                             .ddelta_bias = Tensor::zeros_like(args.delta_bias, DType::f32)};
  unlocked([&] { selective_scan_backward(args, batch_of(lengths), h, from, g); });
  return arrays_of(g.du, g.ddelta, g.dA, g.dB, g.dC, g.dD, g.dz, g.ddelta_bias);
}

SsdScanArgs ssd_args(const InArray& x, const InArray& dt, const InArray& A, const InArray& B,
                     const InArray& C, const OptionalIn& D, const OptionalIn& dt_bias, int64_t groups,
                     bool dt_softplus, float dt_min, float dt_max) {
  return {.x = tensor_of(x, "x"),
          .dt = tensor_of(dt, "dt"),
          .A = tensor_of(A, "A"),
          .B = tensor_of(B, "B"),
          .C = tensor_of(C, "C"),
          .D = tensor_of(D, "D"),
          .dt_bias = tensor_of(dt_bias, "dt_bias"),
          .groups = groups,
          .dt_softplus = dt_softplus,
          .dt_min = dt_min,
          .dt_max = dt_max};
}

nb::tuple ssd(const InArray& x, const InArray& dt, const InArray& A, const InArray& B, const InArray& C,
              const OptionalIn& D, const OptionalIn& dt_bias, int64_t groups, bool dt_softplus, float dt_min,
              float dt_max, const Lengths& lengths, const OptionalIn& initial) {
  const SsdScanArgs args = ssd_args(x, dt, A, B, C, D, dt_bias, groups, dt_softplus, dt_min, dt_max);
  const Tensor before = tensor_of(initial, "initial");
  Tensor h;
  const Tensor y = unlocked([&] {
    const int64_t H = args.A.numel(), G = args.groups;
    SSM_CHECK(H > 0 && G > 0 && args.x.rank() == 2 && args.B.rank() == 2, "ssd_scan: x {}, A {}, B {}",
              args.x.shape(), args.A.shape(), args.B.shape());
    h = state_of(before, {std::ssize(lengths), H, args.B.size(1) / G, args.x.size(1) / H}, args.x.device());
    return ssd_scan(args, batch_of(lengths), h);
  });
  return arrays_of(y, h);
}

nb::tuple ssd_backward(const InArray& x, const InArray& dt, const InArray& A, const InArray& B,
                       const InArray& C, const OptionalIn& D, const OptionalIn& dt_bias, int64_t groups,
                       bool dt_softplus, float dt_min, float dt_max, const Lengths& lengths,
                       const OptionalIn& initial, const InArray& dy, const OptionalIn& dlast,
                       bool wants_initial) {
  const SsdScanArgs args = ssd_args(x, dt, A, B, C, D, dt_bias, groups, dt_softplus, dt_min, dt_max);
  const Tensor h = tensor_of(initial, "initial"), from = tensor_of(dy, "dy");
  const Tensor after = tensor_of(dlast, "dlast");
  const SsdScanGrads g{.dx = Tensor::empty_like(args.x),
                       .ddt = Tensor::empty_like(args.dt),
                       .dA = Tensor::zeros_like(args.A, DType::f32),
                       .dB = Tensor::empty_like(args.B),
                       .dC = Tensor::empty_like(args.C),
                       .dD = Tensor::zeros_like(args.D, DType::f32),
                       .ddt_bias = Tensor::zeros_like(args.dt_bias, DType::f32),
                       .dinitial = wants_initial ? Tensor::empty_like(h) : Tensor()};
  unlocked([&] { ssd_scan_backward(args, batch_of(lengths), h, from, g, after); });
  return arrays_of(g.dx, g.ddt, g.dA, g.dB, g.dC, g.dD, g.ddt_bias, g.dinitial);
}

nb::tuple conv(const InArray& x, const InArray& weight, const OptionalIn& bias, bool silu,
               const Lengths& lengths, const OptionalIn& initial) {
  const Tensor in = tensor_of(x, "x"), w = tensor_of(weight, "weight"), b = tensor_of(bias, "bias");
  const Tensor before = tensor_of(initial, "initial");
  const Activation activation = silu ? Activation::silu : Activation::none;
  Tensor kept;
  const Tensor y = unlocked([&] {
    SSM_CHECK(w.rank() == 2 && w.size(1) >= 1, "causal_conv1d: weight has shape {}, expected [C, K]",
              w.shape());
    kept = state_of(before, {std::ssize(lengths), w.size(1) - 1, w.size(0)}, w.device());
    return causal_conv1d(in, w, b, activation, batch_of(lengths), kept);
  });
  return arrays_of(y, kept);
}

nb::tuple conv_backward(const InArray& x, const InArray& weight, const OptionalIn& bias, bool silu,
                        const Lengths& lengths, const OptionalIn& initial, const InArray& dy) {
  const Tensor in = tensor_of(x, "x"), w = tensor_of(weight, "weight"), b = tensor_of(bias, "bias");
  const Tensor before = tensor_of(initial, "initial"), from = tensor_of(dy, "dy");
  const CausalConv1dGrads g{.dx = Tensor::empty_like(in),
                            .dweight = Tensor::zeros_like(w, DType::f32),
                            .dbias = Tensor::zeros_like(b, DType::f32)};
  const Activation activation = silu ? Activation::silu : Activation::none;
  unlocked([&] { causal_conv1d_backward(in, w, b, activation, batch_of(lengths), before, from, g); });
  return arrays_of(g.dx, g.dweight, g.dbias);
}

nb::tuple nll(const InArray& logits, const InArray& targets, int64_t vocab) {
  const Tensor scores = tensor_of(logits, "logits"), ids = tensor_of(targets, "targets");
  const CrossEntropy result = unlocked([&] { return cross_entropy(scores, ids, vocab); });
  return arrays_of(result.nll, result.argmax);
}

}  // namespace

void bind_ops(nb::module_& m) {
  using nb::arg;
  const auto none = nb::none();
  m.def("selective_scan", &scan, arg("u"), arg("delta"), arg("A"), arg("B"), arg("C"), arg("D").none(),
        arg("z").none(), arg("delta_bias").none(), arg("delta_softplus"), arg("lengths"),
        arg("initial") = none, "(y [T, E], the last states [B, N, E]) from `initial` ones, or zeros.");
  m.def("selective_scan_backward", &scan_backward, arg("u"), arg("delta"), arg("A"), arg("B"), arg("C"),
        arg("D").none(), arg("z").none(), arg("delta_bias").none(), arg("delta_softplus"), arg("lengths"),
        arg("initial").none(), arg("dy"), "(du, ddelta, dA, dB, dC, dD, dz, ddelta_bias)");
  m.def("ssd_scan", &ssd, arg("x"), arg("dt"), arg("A"), arg("B"), arg("C"), arg("D").none(),
        arg("dt_bias").none(), arg("groups"), arg("dt_softplus"), arg("dt_min"), arg("dt_max"),
        arg("lengths"), arg("initial") = none,
        "(y [T, H*P], the last states [B, H, N, P]) from `initial` ones, or zeros.");
  m.def("ssd_scan_backward", &ssd_backward, arg("x"), arg("dt"), arg("A"), arg("B"), arg("C"),
        arg("D").none(), arg("dt_bias").none(), arg("groups"), arg("dt_softplus"), arg("dt_min"),
        arg("dt_max"), arg("lengths"), arg("initial").none(), arg("dy"), arg("dlast") = none,
        arg("wants_initial") = true, "(dx, ddt, dA, dB, dC, dD, ddt_bias, dinitial)");
  m.def("causal_conv1d", &conv, arg("x"), arg("weight"), arg("bias").none(), arg("silu"), arg("lengths"),
        arg("initial") = none, "(y [T, C], the last inputs [B, K - 1, C]) after `initial` ones, or zeros.");
  m.def("causal_conv1d_backward", &conv_backward, arg("x"), arg("weight"), arg("bias").none(), arg("silu"),
        arg("lengths"), arg("initial").none(), arg("dy"), "(dx, dweight, dbias)");
  m.def("cross_entropy", &nll, arg("logits"), arg("targets"), arg("vocab"),
        "(nll [T], argmax [T]) of logits [T, V] f32 and targets [T] i32; -1: none.");
}

}  // namespace ssm::python
