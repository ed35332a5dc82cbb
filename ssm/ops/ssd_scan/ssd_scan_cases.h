// Operands that test and bench share.
#pragma once

#include "ssm/ops/ssd_scan/ssd_scan.h"
#include "ssm/ops/test_util.h"

namespace ssm::test {

// Sizes of real models' kind: A in [-16, -1] and steps around 0.05, as they are initialised.
inline SsdScanArgs ssd_scan_case(int64_t T, int64_t H, int64_t P, int64_t G, int64_t N, Rng& rng) {
  SsdScanArgs args;
  args.groups = G;
  args.x = random_normal({T, H * P}, rng);
  args.dt = random_normal({T, H}, rng, 1.0f, -3.0f);
  args.A = Tensor::empty({H});
  for (float& a : args.A.values<float>()) a = -1.0f - 15.0f * rng.uniform();
  args.B = random_normal({T, G * N}, rng);
  args.C = random_normal({T, G * N}, rng);
  args.D = random_normal({H}, rng);
  args.dt_bias = random_normal({H}, rng, 0.1f);
  return args;
}

}  // namespace ssm::test
