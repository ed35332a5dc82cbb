#include "ssm/text/bpe_json.h"

namespace ssm::text {

using nlohmann::ordered_json;

ordered_json byte_level_json() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
}

ordered_json added_token_json(const std::string& content, size_t id, bool special) {
  return {{"id", id},        {"content", content},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", !special}, {"special", special}};
}

ordered_json bpe_json(const ordered_json& normalizer, const ordered_json& pre_tokenizer, bool ignore_merges) {
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", ordered_json::array()},
          {"normalizer", normalizer},
          {"pre_tokenizer", pre_tokenizer},
          {"post_processor", nullptr},
          {"decoder", byte_level_json()},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", ignore_merges}}}};
}

std::string bpe_json_text(ordered_json rest, ordered_json::object_t vocab, ordered_json merges) {
  rest["model"]["vocab"] = std::move(vocab);
  rest["model"]["merges"] = std::move(merges);
  return rest.dump(2) + "\n";
}

}  // namespace ssm::text
