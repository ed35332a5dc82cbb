// A Mamba model or a GPT-NeoX into a GGUF file: the keys and tensors that gguf_model.h reads, as llama.cpp's
// converter chooses their names, shapes and types (what is no matrix is F32). Throws Error, beginning with
// the file, for what GGUF has no key for: hybrids, a GPT-NeoX without attention's biases, a dt limit, biases
// of in_proj and out_proj, a convolution without one, a D per channel, an epsilon of FalconMamba's B, C and
// dt that is not 1e-6.
#pragma once

#include <nlohmann/json.hpp>

#include "ssm/io/gguf_writer.h"

namespace ssm::io {

// `config` is a full one (ssm/io/config.h). `name` is what the model is called in the file.
// "mamba", "mamba2" or "gptneox".
std::string gguf_architecture(const nlohmann::json& config);
void add_model_keys(GgufWriter& writer, const nlohmann::json& config, const std::string& name,
                    std::span<const LazyWeight> weights);
// `weights` have Transformers' names and shapes.
void add_model_tensors(GgufWriter& writer, const nlohmann::json& config, std::span<const LazyWeight> weights);

}  // namespace ssm::io
