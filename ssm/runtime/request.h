// What is asked of a model: how a text goes on and what is told about it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/ops/sampling/sampling.h"

namespace ssm {

struct GenerateOptions {
  SamplingParams sampling;        // sequence i draws from seed + i
  int64_t max_new_tokens = -1;    // -1: until something else stops it
  std::vector<std::string> stop;  // the text ends before the first of these; needs a tokenizer
  bool ignore_eos = false;
  std::optional<std::vector<int32_t>> eos = {};  // ids that end a text instead of the model's own
};

// failed: the model gave no finite score, or memory ran out; an error's text comes with it.
enum class StopReason { eos, stop, length, cancelled, failed };
std::string_view name_of(StopReason reason);

// Throws Error naming the option that makes no sense.
void check(const GenerateOptions& options, bool has_tokenizer);

}  // namespace ssm
