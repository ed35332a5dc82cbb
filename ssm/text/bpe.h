// Byte pair encoding of one word, id for id as the `tokenizers` package does it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ssm/text/vocab.h"

namespace ssm::text {

class Bpe {
 public:
  struct Options {
    std::optional<int32_t> unk;  // the id of unk_token
    bool fuse_unk = false;
    bool byte_fallback = false;  // <0x0A> tokens for characters the vocabulary lacks
    bool ignore_merges = false;  // a word that is a token is that token
  };

  Bpe(Vocab vocab, MergeTable merges, const Options& options);

  // Appends the ids of `word`. `byte_level`: each byte is one symbol, spelled by GPT-2's alphabet in the
  // vocabulary; otherwise each character is. A symbol without a token is unk_token, or else nothing.
  void encode(std::string_view word, bool byte_level, std::vector<int32_t>& out) const;

  const Vocab& vocab() const { return vocab_; }

 private:
  void symbols_of(std::string_view word, bool byte_level, std::vector<int32_t>& out) const;
  bool fall_back_to_bytes(std::string_view symbol, std::vector<int32_t>& out) const;
  size_t merge_short(int32_t* ids, size_t count) const;
  size_t merge_long(int32_t* ids, size_t count) const;

  Vocab vocab_;
  MergeTable merges_;
  Options options_;
  std::array<int32_t, 256> byte_symbol_;    // the token of a byte in GPT-2's alphabet; -1: none
  std::array<int32_t, 256> byte_fallback_;  // the token <0x..> of a byte; -1: none
};

}  // namespace ssm::text
