// The parts of ggml_tokenizer.h, a kind each.
#pragma once

#include <nlohmann/json.hpp>

#include "ssm/text/ggml_tokenizer.h"
#include "ssm/text/sentencepiece_model.h"
#include "ssm/text/tokenizer_json.h"

namespace ssm::text {

// What a name of tokenizer.ggml.pre stands for.
struct GgmlPre {
  nlohmann::json normalizer, pre_tokenizer;
  bool ignore_merges = false;
};
GgmlPre ggml_pre(const std::string& pre, const std::string& name);
// The name that llama.cpp's converter gives these parts of a tokenizer.json; nothing: it has none.
std::optional<std::string> ggml_pre_name(const GgmlPre& parts);

TokenizerJson bpe_of_ggml(const GgmlTokenizer& tokenizer, const std::string& name);
GgmlTokenizer ggml_of_bpe(TokenizerJson json, const std::string& name);
std::string text_of(const TokenizerJson& json);  // of a tokenizer.json

std::string sentencepiece_of_ggml(const GgmlTokenizer& tokenizer,
                                  const std::string& name);  // a model's bytes
GgmlTokenizer ggml_of_sentencepiece(std::string_view model, const std::string& name);

// Whether `token` only fills a place in the list of tokens.
bool is_padding(std::string_view token, int32_t type, size_t id);

}  // namespace ssm::text
