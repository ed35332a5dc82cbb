// Tokenizers beside models and inside of them: where ssm/text reads files of its own, this also reads GGUF.
#pragma once

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "ssm/io/gguf.h"
#include "ssm/text/ggml_tokenizer.h"

namespace ssm {

// What text::open_tokenizer takes, or a GGUF file, whose own it then is. Null: a folder or a GGUF file
// without one.
std::unique_ptr<text::Tokenizer> open_model_tokenizer(const std::filesystem::path& path);

// The keys tokenizer.ggml.*; nothing: the file has no tokenizer. Throws Error naming the file and the key.
std::optional<text::GgmlTokenizer> ggml_tokenizer(const io::GgufFile& file);

// What tokenizer_config.json of a model says, or a GGUF file in its stead (add_bos_token, chat_template); an
// object, empty where there is nothing.
nlohmann::json tokenizer_config(const std::filesystem::path& model);

// Writes the files that make a tokenizer into the folder `to`: those of the folder `from`, or a GGUF file's
// as tokenizer.json or tokenizer.model.
void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace ssm
