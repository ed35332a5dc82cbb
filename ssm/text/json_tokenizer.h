// The tokenizer of a tokenizer.json whose model is BPE.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ssm/text/added_tokens.h"
#include "ssm/text/bpe.h"
#include "ssm/text/normalizer.h"
#include "ssm/text/pre_tokenizer.h"
#include "ssm/text/tokenizer.h"
#include "ssm/text/tokenizer_json.h"

namespace ssm::text {

// What a decoder does: to each token, and to the beginning of the text.
struct TokenDecoder {
  bool byte_level = false;     // GPT-2's alphabet stands for bytes
  bool byte_fallback = false;  // <0x0A> stands for a byte
  std::vector<std::pair<std::string, std::string>> replacements;
  bool drops_first_space = false;
};

// Throws Error naming the field of what it does not know.
TokenDecoder parse_decoder(const nlohmann::json& json, const std::string& name);
// Appends what `token` decodes to.
void append_decoded(const TokenDecoder& decoder, std::string_view token, std::string& out);

class JsonTokenizer final : public Tokenizer {
 public:
  JsonTokenizer(TokenizerJson json, const std::string& name);

  std::vector<int32_t> encode(std::string_view text) const override;
  int64_t size() const override { return static_cast<int64_t>(token_end_.size()); }
  std::optional<int32_t> find(std::string_view token) const override;
  std::optional<int32_t> bos() const override { return bos_; }
  std::optional<int32_t> eos() const override { return eos_; }
  std::string_view bytes_of(int32_t id) const override;
  bool drops_first_space() const override { return decoder_.drops_first_space; }
  bool drops_space_after(int32_t id) const override;

  void set_special_tokens(std::optional<int32_t> bos, std::optional<int32_t> eos) {
    bos_ = bos;
    eos_ = eos;
  }

 private:
  class Encoding;

  void read_added_tokens(const JsonObject& root, const Vocab& vocab);
  void check_ids(const Vocab& vocab, const std::string& name) const;
  void fill_token_bytes(const Vocab& vocab);
  void index_added_tokens(const std::string& name);
  std::string normalize(std::string_view text) const;

  NormalizerParts normalizer_;
  PreTokenizers pre_tokenizers_;
  TokenDecoder decoder_;
  std::vector<AddedToken> added_;
  Vocab added_ids_;
  AddedTokenFinder raw_finder_, normalized_finder_;
  std::optional<Bpe> bpe_;

  std::string token_bytes_;          // what every id decodes to, one after the other
  std::vector<uint64_t> token_end_;  // where id's bytes end; kMissing set: the vocabulary lacks the id
  std::vector<bool> is_added_;
  std::optional<int32_t> bos_, eos_;
};

}  // namespace ssm::text
