// Writes a model folder in the original state-spaces layout: config.json and pytorch_model.bin, as mamba_ssm
// reads them. Throws Error, beginning with the file, for what that layout cannot say: FalconMamba, an epsilon
// that is not 1e-5.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>

#include "ssm/io/safetensors.h"

namespace ssm::io {

// The text of config.json for a full config (ssm/io/config.h).
std::string original_config(const nlohmann::json& config, const std::string& file);

// `tensors` have Transformers' names.
void write_original(const std::filesystem::path& folder, const nlohmann::json& config,
                    std::span<const LazyTensor> tensors);

// A state dict as torch.save writes it: a zip of a pickle and one stored entry a tensor. `aliases` are
// further names of tensors. Atomic, one tensor in memory at a time.
struct TensorAlias {
  std::string name, same_as;
};
void write_torch(const std::filesystem::path& path, std::span<const LazyTensor> tensors,
                 std::span<const TensorAlias> aliases = {});

}  // namespace ssm::io
