// Runs a test body of the ops on every instruction set of this machine.
#pragma once

#include "ssm/ops/simd/extensions.h"
#include "ssm/ops/simd/kernel_target.h"
#include "ssm/ops/test_util.h"
#include "ssm/quant/test_targets.h"

namespace ssm::test {

// Once for each Highway target.
template <class Body>
void for_each_target(Body&& body) {
  for_each_kernel_target([&](const char* target) {
    EXPECT_EQ(kernel_target(), target);
    body();
  });
}

// Once for each Highway target alone, then with the extensions that this CPU has.
template <class Body>
void for_each_target_and_extension(Body&& body) {
  const cpu::Extensions all = cpu::extensions();
  cpu::allow_extensions({});
  for_each_target(body);
  cpu::allow_extensions(all);
  if (!all.vnni && !all.bf16) return;
  SCOPED_TRACE("with extensions");
  body();
}

}  // namespace ssm::test
