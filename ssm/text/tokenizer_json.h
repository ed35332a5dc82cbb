// Reading a tokenizer.json: its two long lists go straight into tables, the rest into a small tree.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "ssm/text/vocab.h"

namespace ssm::text {

struct TokenizerJson {
  nlohmann::json rest;           // all but model.vocab and model.merges
  bool has_vocab = false;        // model.vocab is an object
  bool has_merges = false;       // model.merges is a list
  Vocab vocab;                   // not indexed yet
  std::string merge_bytes;       // the merges, left and right parts one after the other
  std::vector<uint64_t> merges;  // where each part ends in merge_bytes: left, right, left, ...
};

inline constexpr uint64_t kMaxTokenizerBytes = uint64_t{1} << 27;
inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;

// Throws Error with `name` for bytes that are not JSON or nest deeper than a tokenizer.json ever does.
TokenizerJson read_tokenizer_json(std::string_view json, const std::string& name);

}  // namespace ssm::text
