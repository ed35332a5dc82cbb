// An opened model: a folder in Transformers', original state-spaces or Mistral layout, found by looking into
// it, or a GGUF file.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>

#include "ssm/io/gguf.h"

namespace ssm::io {

enum class Layout { transformers, original, mistral, gguf };
std::string_view name_of(Layout layout);

struct Checkpoint {
  std::filesystem::path folder;  // or the GGUF file
  Layout layout;
  // One JSON object in Transformers' key names whatever the layout (model_type mamba | mamba2 |
  // falcon_mamba). Every value is present with its default filled in; a field that would change the function
  // and is not supported has been refused by name. Infinity is the number infinity.
  nlohmann::json config;
  // Names are Transformers' (backbone.embeddings.weight, ...), whatever the layout.
  std::unique_ptr<WeightSource> weights;
  std::shared_ptr<const GgufFile> gguf =
      nullptr;  // the file, which holds the tokenizer too; null for a folder
};

// Throws Error naming the file and the field.
Checkpoint open_checkpoint(const std::filesystem::path& model);

}  // namespace ssm::io
