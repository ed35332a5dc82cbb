// A model into a GGUF file, its tokenizer with it.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "ssm/io/lazy_weight.h"
#include "ssm/text/ggml_tokenizer.h"

namespace ssm {

// What a GGUF file says of a tokenizer: of a folder, a file or another GGUF file.
struct EmbeddedTokenizer {
  std::optional<text::GgmlTokenizer> tokenizer;
  std::string chat_template;  // empty: none
};
EmbeddedTokenizer embedded_tokenizer(const std::filesystem::path& from);

// Writes a GGUF file of `weights`, which have Transformers' names and shapes. The list of tokens is filled up
// to the rows of the embedding.
void save_gguf(const std::filesystem::path& path, const nlohmann::json& config, const std::string& name,
               std::span<const io::LazyWeight> weights, const EmbeddedTokenizer& tokenizer);

}  // namespace ssm
