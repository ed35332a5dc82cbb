// Tokenizers beside models and inside of them: where ssm/text reads files of its own, this also reads GGUF.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "ssm/io/gguf.h"
#include "ssm/text/ggml_tokenizer.h"

namespace ssm {

// What text::open_tokenizer takes, or a GGUF file, whose own it then is. Null: a folder or a GGUF file
// without one.
std::unique_ptr<text::Tokenizer> open_model_tokenizer(const std::filesystem::path& path);

// The keys tokenizer.ggml.*; nothing: the file has no tokenizer. Throws Error naming the file and the key.
std::optional<text::GgmlTokenizer> ggml_tokenizer(const io::GgufFile& file);

// Whether a text begins with bos, where a model's tokenizer_config.json or GGUF file says so or the contrary.
std::optional<bool> adds_bos(const std::filesystem::path& model);

// The chat template that a model's folder or GGUF file brings; nothing: none.
std::optional<std::string> model_chat_template(const std::filesystem::path& model);

// Writes the files that make a tokenizer into the folder `to`: those of the folder `from`, a tokenizer's file
// and what stands beside it, or a GGUF file's as tokenizer.json or tokenizer.model. A folder or GGUF file
// without one is no error; that there is no `from` is.
void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to);

// Mistral's layout says without a file that texts begin with bos: as any other, `folder` says it in its
// tokenizer_config.json, with the names of bos and eos, where it has a tokenizer with a bos.
void write_bos_setting(const std::filesystem::path& folder);

// Where the files lie that stand beside a tokenizer: `path` itself, or the folder of a file.
std::filesystem::path folder_of_tokenizer(const std::filesystem::path& path);

}  // namespace ssm
