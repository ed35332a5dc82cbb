// Writes a model folder in Transformers' layout: config.json and model.safetensors.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "ssm/io/lazy_weight.h"
#include "ssm/io/packed_folder.h"
#include "ssm/io/safetensors.h"

namespace ssm::io {

// The text of config.json for a full config (ssm/io/config.h) with its matrices of type `stored`. Infinity
// stands bare in time_step_limit, as Transformers writes and reads it. Throws Error, beginning with `file`,
// for a config that this layout cannot say (D_has_hdim).
// With `packed`, it says which tensors are.
std::string transformers_config(const nlohmann::json& config, DType stored, const std::string& file,
                                const PackedEntries& packed = {});

// The same of parameters of which some are packed (packed_folder.h).
void write_checkpoint(const std::filesystem::path& folder, const nlohmann::json& config,
                      std::span<const LazyWeight> weights);

// `tensors` have Transformers' names. Files of the folder that are written over appear whole or not at all.
void write_checkpoint(const std::filesystem::path& folder, const nlohmann::json& config, DType stored,
                      std::span<const LazyTensor> tensors);

// What stands beside a tokenizer, where `from` has it: tokenizer_config.json, special_tokens_map.json,
// generation_config.json, chat templates.
void copy_tokenizer_settings(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace ssm::io
