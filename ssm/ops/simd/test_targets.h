// Runs a test body once for each Highway target that the ops are compiled for and this machine has.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>

#include "ssm/ops/test_util.h"

namespace ssm::test {

template <class Body>
void for_each_target(Body&& body) {
  constexpr int64_t kCompiled = HWY_SSE4 | HWY_AVX2 | HWY_AVX3 | HWY_NEON;  // ssm/ops/CMakeLists.txt
  for (int64_t rest = hwy::SupportedTargets() & kCompiled; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();  // the next dispatch chooses again
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace ssm::test
