// Where a tokenizer's files are, and what stands beside them.
#pragma once

#include <filesystem>
#include <optional>

#include "ssm/text/tokenizer.h"

namespace ssm::text {

// `path` itself where it is a file, or the tokenizer.json or SentencePiece model of a folder; empty: none.
// Throws Error where there is no such path.
std::filesystem::path tokenizer_place(const std::filesystem::path& path);

// "bos_token" and the like, of tokenizer_config.json or special_tokens_map.json in `folder`.
std::optional<int32_t> special_token(const std::filesystem::path& folder, const char* field,
                                     const Tokenizer& tokenizer);
std::optional<bool> adds_bos(const std::filesystem::path& folder);  // add_bos_token of tokenizer_config.json

}  // namespace ssm::text
