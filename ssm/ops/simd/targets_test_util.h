// Runs a test body once for every Highway target that the ops are compiled for and this machine has.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include "ssm/core/parallel.h"

namespace ssm::test {

template <class Body>
void for_each_target(const Body& body) {
  const int64_t compiled = HWY_AVX2 | HWY_AVX3 | HWY_NEON | HWY_EMU128;
  for (int64_t left = hwy::SupportedTargets() & compiled; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    body();
    hwy::SetSupportedTargetsForTest(0);
  }
}

// Sets the number of threads for a scope, then restores the default.
class ThreadScope {
 public:
  explicit ThreadScope(int n) { set_num_threads(n); }
  ~ThreadScope() { set_num_threads(0); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;
};

}  // namespace ssm::test
