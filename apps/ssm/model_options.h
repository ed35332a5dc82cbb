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
  std::string adapter;
  std::string device = "auto";
  std::string dtype = "auto";
  std::string state_dtype = "f32";
  int threads = 0;
  int64_t kv_memory = 0;  // MiB; 0: half of the machine's
  std::string quantize;   // a type; empty: matrices stay as they are stored
  int64_t group = 64;
  bool group_given = false;
  bool json = false;
};

inline constexpr const char* kModelHelp =
    "A folder, a .gguf file, or a name of the Hugging Face hub, owner/name";

void add_model_argument(CLI::App& verb, ModelOptions& options);
void add_tokenizer_flag(CLI::App& verb, ModelOptions& options);
void add_adapter_flag(CLI::App& verb, ModelOptions& options);
void add_quantize_flags(CLI::App& verb, ModelOptions& options);  // quantize, group
void add_chat_template_flag(CLI::App& verb, std::string& name);
void add_json_flag(CLI::App& verb, ModelOptions& options);
void add_machine_flags(CLI::App& verb, ModelOptions& options);  // device, dtype, state-dtype, threads
void add_model_flags(CLI::App& verb, ModelOptions& options);    // all of these

// "int4" and a group, as --type or --quantize and --group say them. A group of a type without is a usage
// error.
QuantFormat format_named(const std::string& type, int64_t group, bool group_given);
void add_group_flag(CLI::App& verb, int64_t& group, bool& given);

// The options that decide how a model runs. Sets the threads too; throws Error for a device that does not
// work here.
LoadOptions load_options(const ModelOptions& options);
LoadedModel load(const ModelOptions& options);

}  // namespace ssm::app
