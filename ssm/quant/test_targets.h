// Runs a test body once for each Highway target that kernels are compiled for and this machine has.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>

namespace ssm::test {

// body(name of the target)
template <class Body>
void for_each_kernel_target(Body&& body) {
  constexpr int64_t kCompiled = HWY_SSE4 | HWY_AVX2 | HWY_AVX3 | HWY_NEON;  // cmake/SsmTargets.cmake
  const int64_t targets = hwy::SupportedTargets() & kCompiled;
  EXPECT_NE(targets, 0);
  for (int64_t rest = targets; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();  // the next dispatch chooses again
    body(hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace ssm::test
