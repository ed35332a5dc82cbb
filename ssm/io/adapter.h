// LoRA adapters in PEFT's layout: adapter_config.json with adapter_model.safetensors (or the older
// adapter_model.bin). Hu et al. 2021, "LoRA": a matrix W [out, in] becomes W + scale B A with A [r, in] and
// B [out, r].
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "ssm/io/safetensors.h"

namespace ssm::io {

struct AdapterConfig {
  int64_t r = 8;
  double alpha = 8;
  double dropout = 0;         // of the input of A, in training only
  bool use_rslora = false;    // scale = alpha / sqrt(r) instead of alpha / r (Kalajdzievski 2023)
  std::string bias = "none";  // which biases are trained too: none, all, lora_only (those of target modules)
  std::vector<std::string> target_modules;   // in_proj, x_proj, dt_proj, out_proj, embeddings, lm_head
  std::vector<std::string> modules_to_save;  // trained whole: conv1d, norm_f, ... and by our own extension
                                             // A_log, D, dt_bias
  nlohmann::json alpha_pattern =
      nlohmann::json::object();  // alpha of single modules, by the end of their names
  std::string base_model;        // a name or folder, empty when unknown

  bool targets(std::string_view module) const;  // by the end of its name
  // `module` as in "backbone.layers.0.mixer.in_proj"; `rank` as its A has it.
  double scale_of(std::string_view module, int64_t rank) const;
};

struct Adapter {
  std::filesystem::path folder;
  AdapterConfig config;
  // Names without PEFT's wrapping: backbone.layers.0.mixer.in_proj.lora_A.weight [r, in], ...lora_B.weight
  // [out, r], backbone.embeddings.lora_embedding_A [r, V] and lora_embedding_B [M, r]; whole tensors
  // (backbone.layers.0.mixer.conv1d.weight) under their own name.
  std::unique_ptr<WeightSource> weights;
};

// Throws Error naming the file and the field: damaged, not LoRA, or an option that changes the function and
// is not supported (DoRA, ...).
Adapter open_adapter(const std::filesystem::path& folder);
// Its adapter_config.json alone; `file`: as errors call it.
AdapterConfig parse_adapter_config(const nlohmann::json& object, const std::string& file);

// Tensors are named as in `Adapter`. The folder is created; each of its files appears whole or not at all.
void write_adapter(const std::filesystem::path& folder, const AdapterConfig& config,
                   std::span<const NamedTensor> tensors);

}  // namespace ssm::io
