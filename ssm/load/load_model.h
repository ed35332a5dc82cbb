// load_model: a folder of any supported layout, as it was downloaded, to a model ready to run.
#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/load/quantization.h"
#include "ssm/models/causal_lm.h"
#include "ssm/text/tokenizer.h"

namespace ssm {

struct LoadOptions {
  // Type of the activations at matrix products. Nothing: the file's type where the device multiplies it
  // natively, otherwise f32. Weights stay as stored; on a card they are converted to this type if need be.
  std::optional<DType> compute;
  std::filesystem::path tokenizer = {};  // a file or folder that replaces the model's own
  std::filesystem::path adapter = {};    // a folder in PEFT's layout, which the model is given
  Device device = kCpu;
  std::optional<Quantization> quantization = {};  // pack the matrices while they are read
  DType state = DType::f32;                       // how SSM states are stored: f32, bf16 or f16
  // That attention's keys and values may take; 0: half of the memory, of a card of what is free.
  size_t kv_bytes = 0;
  // Leave the parameters on the host as they are stored: who trains the model takes them to `device`.
  bool parameters_stay = false;
  OnProgress progress = {};  // of reading the parameters
};

struct LoadedModel {
  std::unique_ptr<CausalLm> model;
  std::unique_ptr<text::Tokenizer> tokenizer;  // null: the folder carries none
  nlohmann::json config;                       // full, in Transformers' key names
  std::string layout;                          // "transformers", "original", "mistral", "random"
  DType stored = DType::f32;                   // of the matrices, as in the file, where they are dense
  std::optional<QuantFormat> packed = {};      // of the first layer's in_proj, where that is packed
  DType compute = DType::f32;
  DType state = DType::f32;  // of SSM states
  size_t kv_bytes = 0;       // that attention's keys and values may take
  Device device = kCpu;
  int64_t parameters = 0;
  size_t weight_bytes = 0;
  std::vector<int32_t> eos;   // ids that end a text
  std::string chat_template;  // in Jinja, instead of what `folder` holds; empty: that

  // Ids below this can be generated: the padding of the vocabulary cannot.
  int64_t usable_vocab() const;
  std::string stored_name() const;  // "bf16", "q4_k", "int4 group 64"
  // The tokenizer, or an Error that says which file to put where.
  const text::Tokenizer& need_tokenizer() const;

  std::filesystem::path folder;
};

// Throws Error naming the file and the field or tensor.
LoadedModel load_model(const std::filesystem::path& folder, const LoadOptions& options = {});

// What `options` and the type of the file make of device, compute and state; throws Error where they do not
// fit.
void set_execution(LoadedModel& loaded, const LoadOptions& options);
Precision precision_of(const LoadedModel& loaded);

}  // namespace ssm
