// What the benches of whole models share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "apps/ssm/model_options.h"

namespace ssm::app {

// The model of that name; where there is none here, random weights in `stored` of the published shape.
// `weights` becomes "file" or "random". Throws Error for a name that is neither.
LoadedModel open_for_bench(const ModelOptions& options, const std::string& stored, std::string& weights);
void add_stored_flag(CLI::App& verb, std::string& stored);

std::vector<std::vector<int32_t>> random_prompts(const LoadedModel& model, int64_t count, int64_t length);

double median(std::vector<double> values);

}  // namespace ssm::app
