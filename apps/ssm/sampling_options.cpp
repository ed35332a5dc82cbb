#include "apps/ssm/sampling_options.h"

#include <fmt/format.h>

#include <limits>
#include <random>

#include "apps/ssm/flags.h"

namespace ssm::app {

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
