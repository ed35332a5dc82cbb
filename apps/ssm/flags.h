// How flags are read: numbers within bounds, flags that may be given several times.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>

#include "ssm/core/error.h"

namespace ssm::app {

// Number in [low, high], or finite and at least low; NaN is neither.
CLI::Validator number_between(double low, double high);
CLI::Validator number_from(double low);
CLI::Validator positive_number();
// For transform(): the text becomes plain digits.
CLI::Validator integer_between(int64_t low, int64_t high);
CLI::Validator any_seed();

// One value each time the flag is given, as often as it is: what follows belongs to others, and a text in
// brackets is a text, no list.
CLI::Option* repeatable(CLI::Option* option);

// What the parser throws, for arguments that make no sense together: exit code 2.
template <class... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw CLI::ParseError(fmt::format(format, std::forward<Args>(args)...), CLI::ExitCodes::ValidationError);
}
template <class... Args>
void check_usage(bool fits, fmt::format_string<Args...> format, Args&&... args) {
  if (!fits) fail_usage(format, std::forward<Args>(args)...);
}

// What `f` gives, which reads arguments: its Error is that of arguments that make no sense.
template <class F>
auto reading_arguments(F f) {
  try {
    return f();
  } catch (const Error& e) {
    fail_usage("{}", e.what());
  }
}

// For a verb below `verb`, to which the arguments of `verb` itself mean nothing.
void refuse_arguments(const CLI::App& verb, const std::string& below);

}  // namespace ssm::app
