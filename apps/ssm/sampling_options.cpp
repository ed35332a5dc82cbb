#include "apps/ssm/sampling_options.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>
#include <random>

namespace ssm::app {

namespace {

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
  return CLI::Validator(
      [low, high](std::string& text) {
        double x = 0;
        if (CLI::detail::lexical_cast(text, x) && x >= low && x <= high) return std::string();
        return fmt::format("{} is not a number between {} and {}", text, low, high);
      },
      "");
}

CLI::Validator number_from(double low) {
  return CLI::Validator(
      [low](std::string& text) {
        double x = 0;
        if (CLI::detail::lexical_cast(text, x) && x >= low && x <= std::numeric_limits<float>::max())
          return std::string();
        return fmt::format("{} is not a number from {} on", text, low);
      },
      "");
}

CLI::Validator positive_number() {
  return CLI::Validator(
      [](std::string& text) {
        double x = 0;
        if (CLI::detail::lexical_cast(text, x) && x > 0 && x <= std::numeric_limits<float>::max())
          return std::string();
        return fmt::format("{} is not a number above 0", text);
      },
      "");
}

CLI::Validator integer_between(int64_t low, int64_t high) { return whole_number(low, high); }

CLI::Validator any_seed() { return whole_number<uint64_t>(0, std::numeric_limits<uint64_t>::max()); }

SamplingParams SamplingOptions::with_seed() {
  if (!seed) {
    std::random_device device;
    seed = device();  // 32 bits: a number that can be typed again
  }
  SamplingParams result = params;
  result.seed = *seed;
  return result;
}

void add_sampling_flags(CLI::App& verb, SamplingOptions& options) {
  SamplingParams& p = options.params;
  auto flag = [&](const char* names, auto& value, const std::string& text) {
    return verb.add_option(names, value, fmt::format("{}; default {}", text, value));
  };
  flag("--temperature", p.temperature, "0: always the best token")->check(number_from(0))->option_text("X");
  flag("--top-k,--topk", p.top_k, "Only the K best; 0: off")
      ->transform(integer_between(0, std::numeric_limits<int32_t>::max()))
      ->option_text("K");
  flag("--top-p,--topp", p.top_p, "Only the fewest that make up P; 1: off")
      ->check(number_between(0, 1))
      ->option_text("P");
  flag("--min-p,--minp", p.min_p, "Only those with P times the best one's probability; 0: off")
      ->check(number_between(0, 0.999999))
      ->option_text("P");
  flag("--repetition-penalty", p.repetition_penalty, "Above 1: avoid tokens seen before; 1: off")
      ->check(positive_number())
      ->option_text("X");
  verb.add_option("--seed", options.seed, "The same seed gives the same text; without it a random one")
      ->transform(any_seed())
      ->option_text("N");
}

}  // namespace ssm::app
