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

}  // namespace ssm::app
