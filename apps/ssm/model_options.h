// The arguments of every verb that loads a model.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "ssm/load/load_model.h"

namespace ssm::app {

struct ModelOptions {
  std::string model;  // as given; empty: the bundled model
  std::string tokenizer;
  std::string device = "auto";
  std::string dtype = "auto";
  int threads = 0;
  bool json = false;
};

void add_model_argument(CLI::App& verb, ModelOptions& options);
void add_tokenizer_flag(CLI::App& verb, ModelOptions& options);
void add_json_flag(CLI::App& verb, ModelOptions& options);
void add_model_flags(CLI::App& verb, ModelOptions& options);  // these two, and device, dtype, threads

// Sets the device and the threads; throws Error for a device that this build lacks.
void apply_machine_options(const ModelOptions& options);
std::optional<DType> compute_of(const ModelOptions& options);
LoadedModel load(const ModelOptions& options);

}  // namespace ssm::app
