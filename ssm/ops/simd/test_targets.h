// Runs a test body once for each Highway target that this machine has and the library was built with.
#pragma once

#include <hwy/targets.h>

#include <cstdint>

namespace ssm::test {

template <class Body>
void for_each_target(Body&& body) {
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();  // the next dispatch chooses again
    body(hwy::TargetName(rest & -rest));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
}

}  // namespace ssm::test
