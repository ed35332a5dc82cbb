#include "apps/ssm/flags.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace ssm::app {
namespace {

constexpr double kLargest = std::numeric_limits<float>::max();

// `what` says in an error what was expected.
CLI::Validator number_that(std::function<bool(double)> fits, const std::string& what) {
  return CLI::Validator(
      [fits = std::move(fits), what](std::string& text) {
        double x = 0;
        if (CLI::detail::lexical_cast(text, x) && fits(x)) return std::string();
        return fmt::format("{} is not a number {}", text, what);
      },
      "");
}

// Stricter than the parser's own reading, which wraps, saturates and takes a leading zero for octal.
template <class T>
CLI::Validator whole_number(T low, T high) {
  return CLI::Validator(
      [low, high](std::string& text) {
        T x = 0;
        const char* end = text.data() + text.size();
        const auto [at, error] = std::from_chars(text.data(), end, x);
        if (error != std::errc() || at != end || x < low || x > high)
          return fmt::format("{} is not a whole number between {} and {}", text, low, high);
        text = std::to_string(x);
        return std::string();
      },
      "");
}

}  // namespace

CLI::Validator number_between(double low, double high) {
  return number_that([low, high](double x) { return x >= low && x <= high; },
                     fmt::format("between {} and {}", low, high));
}

CLI::Validator number_from(double low) {
  return number_that([low](double x) { return x >= low && x <= kLargest; }, fmt::format("from {} on", low));
}

CLI::Validator positive_number() {
  return number_that([](double x) { return x > 0 && x <= kLargest; }, "above 0");
}

CLI::Validator integer_between(int64_t low, int64_t high) { return whole_number(low, high); }

CLI::Validator any_seed() { return whole_number<uint64_t>(0, std::numeric_limits<uint64_t>::max()); }

void refuse_arguments(const CLI::App& verb, const std::string& below) {
  for (const CLI::Option* option : verb.get_options()) {
    check_usage(option->count() == 0, "{} {} takes no {}", verb.get_name(), below, option->get_name());
  }
}

CLI::Option* repeatable(CLI::Option* option) {
  return option->expected(1)->allow_extra_args(false)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

}  // namespace ssm::app
