// Operands that test and bench share.
#pragma once

#include "ssm/ops/selective_scan/selective_scan.h"
#include "ssm/ops/test_util.h"

namespace ssm::test {

// Sizes of real models' kind: A = -1 .. -N as S4D-real initialises it, steps around 0.05.
inline SelectiveScanArgs selective_scan_case(int64_t T, int64_t E, int64_t N, Rng& rng) {
  SelectiveScanArgs args;
  args.u = random_normal({T, E}, rng);
  args.delta = random_normal({T, E}, rng, 1.0f, -3.0f);
  args.A = Tensor::empty({N, E}).transpose(0, 1);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t e = 0; e < E; ++e)
      args.A.data<float>()[n * E + e] = -static_cast<float>(n + 1) * (0.5f + rng.uniform());
  }
  args.B = random_normal({T, N}, rng);
  args.C = random_normal({T, N}, rng);
  args.D = random_normal({E}, rng);
  args.z = random_normal({T, E}, rng);
  args.delta_bias = random_normal({E}, rng, 0.1f);
  return args;
}

}  // namespace ssm::test
