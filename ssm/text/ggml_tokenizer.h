// A tokenizer as GGUF files carry it (their keys tokenizer.ggml.*): tokens by id, and what its kind needs.
//
//   gpt2    byte-level BPE: merges, and a name for the pre-tokenizer and normalizer around it
//   llama   SentencePiece: scores; BPE where those of all normal pieces are whole numbers (ranks), otherwise
//           unigram (log-probabilities)
//
// It becomes the tokenizer.json or the SentencePiece model that it was made of, and those become it: one way
// of tokenizing, whatever the file. Errors begin with `name`, the file's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ssm/text/tokenizer.h"

namespace ssm::text {

struct GgmlTokenizer {
  std::string kind;                 // "gpt2", "llama"
  std::string pre;                  // gpt2: "olmo", "falcon", ...; empty: not said
  std::vector<std::string> tokens;  // by id; [PAD7] of the id 7 is no token
  std::vector<int32_t> types;       // SentencePieceType; none: all normal
  std::vector<float> scores;        // llama
  std::vector<std::string> merges;  // gpt2: "left right"
  std::optional<int32_t> bos, eos, unk, pad;
  std::optional<bool> add_bos;                                     // whether a text begins with bos
  bool add_space_prefix = true, remove_extra_whitespaces = false;  // llama
};

// Throws Error naming the key: an unknown kind or pre-tokenizer, lists of different lengths, ...
std::unique_ptr<Tokenizer> make_tokenizer(const GgmlTokenizer& tokenizer, const std::string& name);

// The same as files of a model folder: tokenizer.json with tokenizer_config.json, or tokenizer.model.
struct TokenizerFile {
  std::string name, bytes;
};
std::vector<TokenizerFile> tokenizer_files(const GgmlTokenizer& tokenizer, const std::string& name);

// The way there, from what open_tokenizer takes; nothing: a folder without a tokenizer. Throws Error naming
// what GGUF cannot say: a pre-tokenizer without a name there, a unigram model, replaced characters, ...
std::optional<GgmlTokenizer> read_ggml_tokenizer(const std::filesystem::path& path);

}  // namespace ssm::text
