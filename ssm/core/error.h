// Errors of the library: one exception type whose text names the file, tensor, op and shapes.
// The library never aborts and never prints; the program turns an Error into one line on stderr.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace ssm {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace ssm

// SSM_CHECK(condition, "format {}", args...): throws ssm::Error with the formatted text.
#define SSM_CHECK(condition, ...)  \
  do {                             \
    if (!(condition)) [[unlikely]] \
      ::ssm::fail(__VA_ARGS__);    \
  } while (0)
