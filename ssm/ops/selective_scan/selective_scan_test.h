// What the tests of selective_scan on a CPU and on a card share.
#pragma once

#include "ssm/ops/selective_scan/selective_scan_cases.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"

namespace ssm::test {

// Replaces the activations of `args` that are there by f of them.
template <class F>
void for_activations(SelectiveScanArgs& args, F&& f) {
  for (Tensor* x : {&args.u, &args.delta, &args.B, &args.C, &args.z}) {
    if (x->defined()) *x = f(*x);
  }
}

// Tokens [begin, end) of a call.
inline SelectiveScanArgs tokens(SelectiveScanArgs args, int64_t begin, int64_t end) {
  for_activations(args, [&](const Tensor& x) { return x.slice(0, begin, end); });
  return args;
}

// y and, in `state` [N, E], the last h of one sequence.
inline std::vector<double> reference_scan(const SelectiveScanArgs& args, std::vector<double>& state) {
  const auto doubles = [](const Tensor& x) { return x.defined() ? to_doubles(x) : std::vector<double>(); };
  reference::SelectiveScan<double> s;
  s.E = static_cast<size_t>(args.A.size(0)), s.N = static_cast<size_t>(args.A.size(1));
  s.u = doubles(args.u), s.delta = doubles(args.delta), s.A = doubles(args.A);
  s.B = doubles(args.B), s.C = doubles(args.C), s.D = doubles(args.D), s.z = doubles(args.z);
  s.delta_bias = doubles(args.delta_bias), s.delta_softplus = args.delta_softplus;
  return reference::selective_scan(s, state);
}

// A case with random operands left out.
inline SelectiveScanArgs random_selective_scan(int64_t T, int64_t E, int64_t N, Rng& rng) {
  SelectiveScanArgs args = selective_scan_case(T, E, N, rng);
  if (rng.below(3) == 0) args.D = Tensor();
  if (rng.below(3) == 0) args.z = Tensor();
  if (rng.below(3) == 0) args.delta_bias = Tensor();
  if (rng.below(3) == 0) args.A = args.A.clone();
  if (rng.below(3) == 0) {
    args.delta_softplus = false;
    for (float& x : args.delta.values<float>()) x = std::abs(x) * 0.1f;
    args.delta_bias = Tensor();
  }
  return args;
}

}  // namespace ssm::test
