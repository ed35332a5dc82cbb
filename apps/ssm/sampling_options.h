// The flags that choose tokens, checked while they are parsed.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>

#include "ssm/ops/sampling/sampling.h"

namespace ssm::app {

struct SamplingOptions {
  SamplingParams params{.temperature = 0.8f, .top_p = 0.95f};
  std::optional<uint64_t> seed;

  bool draws() const { return params.temperature > 0 && params.top_k != 1; }
  // The params with the seed given, or else a random one.
  SamplingParams with_seed();
};

// The defaults shown are those in `options`.
void add_sampling_flags(CLI::App& verb, SamplingOptions& options);

// Number in [low, high], or finite and at least low; NaN is neither.
CLI::Validator number_between(double low, double high);
CLI::Validator number_from(double low);
CLI::Validator positive_number();
// For transform(): the text becomes plain digits.
CLI::Validator integer_between(int64_t low, int64_t high);
CLI::Validator any_seed();

}  // namespace ssm::app
