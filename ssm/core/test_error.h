// For tests of what must fail.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ssm/core/error.h"

namespace ssm::test {

// Runs f, which must throw ssm::Error whose text holds every one of `parts` and is one line.
inline void expect_error(const std::function<void()>& f, const std::vector<std::string>& parts) {
  try {
    f();
    ADD_FAILURE() << "nothing was thrown; expected an error about " << testing::PrintToString(parts);
  } catch (const Error& e) {
    const std::string what = e.what();
    for (const std::string& part : parts)
      EXPECT_NE(what.find(part), what.npos) << part << " is not in: " << what;
    EXPECT_EQ(what.find('\n'), what.npos) << what;
  }
}

}  // namespace ssm::test
