// Making a byte-level BPE tokenizer.json as the `tokenizers` package writes one.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace ssm::text {

nlohmann::ordered_json byte_level_json();  // the pre-tokenizer that cuts by GPT-2's pattern, and the decoder

// Tokens that are no control tokens are looked for behind the normalizer, as is its default.
nlohmann::ordered_json added_token_json(const std::string& content, size_t id, bool special);

// All but model.vocab and model.merges; no added tokens yet.
nlohmann::ordered_json bpe_json(const nlohmann::ordered_json& normalizer,
                                const nlohmann::ordered_json& pre_tokenizer, bool ignore_merges);

// The file's text: `rest` with these two, a list of pairs the latter. Tokens are distinct: put them at the
// end of the map, which looks through all keys for each that it inserts.
std::string bpe_json_text(nlohmann::ordered_json rest, nlohmann::ordered_json::object_t vocab,
                          nlohmann::ordered_json merges);

}  // namespace ssm::text
