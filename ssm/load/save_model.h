// save_model: a model in memory to a folder that load_model, Transformers and everyone else reads.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "ssm/io/safetensors.h"
#include "ssm/models/causal_lm.h"

namespace ssm {

// A better value of a parameter than the model's own (an f32 master of a 16-bit copy), or an undefined
// tensor.
using ParameterOverride = std::function<Tensor(const std::string& name)>;

// The parameters under Transformers' names, matrices in `stored`, the rest f32; made when they are written.
// The model must outlive them.
std::vector<io::LazyTensor> lazy_parameters(CausalLm& model, DType stored,
                                            const ParameterOverride& override = {});

// config.json and model.safetensors, and the tokenizer's files of `tokenizer_folder` unless that is empty.
void save_model(const std::filesystem::path& folder, CausalLm& model, const nlohmann::json& config,
                DType stored, const std::filesystem::path& tokenizer_folder,
                const ParameterOverride& override = {});

}  // namespace ssm
