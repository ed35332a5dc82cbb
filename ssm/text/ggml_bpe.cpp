#include "ssm/text/added_tokens.h"
#include "ssm/text/ggml_parts.h"
#include "ssm/text/json_fields.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

using nlohmann::json;
using Type = SentencePieceType;

constexpr const char* kByteLevel =
    R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})";

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.code_point < 0) return false;
    at += step.size;
  }
  return true;
}

// As the `tokenizers` package writes one. Tokens that are no control tokens are looked for behind the
// normalizer, as is its default.
json added_token(const std::string& content, size_t id, bool special) {
  return {{"id", id},        {"content", content},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", !special}, {"special", special}};
}

void read_tokens(const GgmlTokenizer& tokenizer, const std::string& name, TokenizerJson& out) {
  SSM_CHECK(tokenizer.tokens.size() <= static_cast<size_t>(kMaxTokenId),
            "{}: key tokenizer.ggml.tokens has {} items", name, tokenizer.tokens.size());
  json& added = out.rest["added_tokens"] = json::array();
  for (size_t id = 0; id < tokenizer.tokens.size(); ++id) {
    const std::string& token = tokenizer.tokens[id];
    const int32_t type = tokenizer.types.empty() ? static_cast<int32_t>(Type::normal) : tokenizer.types[id];
    if (is_padding(token, type, id)) continue;
    SSM_CHECK(is_utf8(token), "{}: key tokenizer.ggml.tokens: item {} is not UTF-8", name, id);
    const bool control = type == static_cast<int32_t>(Type::control);
    if (control || type == static_cast<int32_t>(Type::user_defined)) {
      added.push_back(added_token(token, id, control));
    } else {
      out.vocab.add(token, static_cast<int32_t>(id));
    }
  }
}

void read_merges(const GgmlTokenizer& tokenizer, const std::string& name, TokenizerJson& out) {
  for (size_t i = 0; i < tokenizer.merges.size(); ++i) {
    const std::string& merge = tokenizer.merges[i];
    const size_t space = merge.find(' ', 1);
    SSM_CHECK(space != merge.npos,
              "{}: key tokenizer.ggml.merges: item {} is not two parts with a space between", name, i);
    for (const std::string_view part :
         {std::string_view(merge).substr(0, space), std::string_view(merge).substr(space + 1)}) {
      out.merge_bytes.append(part);
      out.merges.push_back(out.merge_bytes.size());
    }
  }
}

// What JsonTokenizer may read and GGUF has no words for.
void check_added_token(const JsonObject& token) {
  for (const char* field : {"single_word", "lstrip", "rstrip"}) {
    SSM_CHECK(!token.boolean(field, false), "{} is true, which GGUF cannot say", token.name_of(field));
  }
}

void check_model(const JsonObject& model, const Vocab& vocab) {
  SSM_CHECK(!model.boolean("byte_fallback", false), "{} is true, which GGUF cannot say of a gpt2 tokenizer",
            model.name_of("byte_fallback"));
  if (!model.find("unk_token")) return;
  // Of no use where every byte has a token.
  for (const uint16_t c : kByteToChar) {
    std::string character;
    append_utf8(c, character);
    SSM_CHECK(vocab.find(character), "{} and bytes without a token: GGUF cannot say that",
              model.name_of("unk_token"));
  }
}

}  // namespace

bool is_padding(std::string_view token, int32_t type, size_t id) {
  // Older files call it user-defined.
  return (type == static_cast<int32_t>(Type::unused) || type == static_cast<int32_t>(Type::user_defined)) &&
         token == fmt::format("[PAD{}]", id);
}

TokenizerJson bpe_of_ggml(const GgmlTokenizer& tokenizer, const std::string& name) {
  GgmlPre pre = ggml_pre(tokenizer.pre, name);
  TokenizerJson out;
  out.has_vocab = out.has_merges = true;
  out.rest = {{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"normalizer", pre.normalizer},
              {"pre_tokenizer", pre.pre_tokenizer},
              {"post_processor", nullptr},
              {"decoder", json::parse(kByteLevel)},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", pre.ignore_merges}}}};
  read_tokens(tokenizer, name, out);
  read_merges(tokenizer, name, out);
  return out;
}

std::string text_of(const TokenizerJson& tokenizer) {
  using nlohmann::ordered_json;
  ordered_json vocab = ordered_json::object(), merges = ordered_json::array();
  // ordered_json looks through all keys for each it is given; these are distinct.
  auto& entries = vocab.get_ref<ordered_json::object_t&>();
  for (size_t i = 0; i < tokenizer.vocab.count(); ++i)
    entries.emplace_back(std::string(tokenizer.vocab.token(i)), tokenizer.vocab.id(i));
  for (size_t i = 0, begin = 0; i + 1 < tokenizer.merges.size(); i += 2) {
    const size_t middle = tokenizer.merges[i], end = tokenizer.merges[i + 1];
    merges.push_back({tokenizer.merge_bytes.substr(begin, middle - begin),
                      tokenizer.merge_bytes.substr(middle, end - middle)});
    begin = end;
  }
  ordered_json out = tokenizer.rest;
  out["model"]["vocab"] = std::move(vocab);
  out["model"]["merges"] = std::move(merges);
  return out.dump(2) + "\n";
}

GgmlTokenizer ggml_of_bpe(TokenizerJson json, const std::string& name) {
  const JsonObject root(json.rest, name), model(root.at("model"), name + ": model");
  const auto field = [&](const char* key) { return json.rest.value(key, nlohmann::json()); };
  GgmlTokenizer out;
  out.kind = "gpt2";
  const auto pre =
      ggml_pre_name({field("normalizer"), field("pre_tokenizer"), model.boolean("ignore_merges", false)});
  SSM_CHECK(pre, "{}: normalizer and pre_tokenizer: GGUF has no name for these", name);
  out.pre = *pre;
  SSM_CHECK(!json.vocab.index(), "{}: model.vocab has a token twice", name);
  check_model(model, json.vocab);
  const auto put = [&](size_t id, std::string_view token, Type type) {
    while (out.tokens.size() <= id) {
      out.types.push_back(static_cast<int32_t>(Type::unused));
      out.tokens.push_back(fmt::format("[PAD{}]", out.tokens.size()));
    }
    out.tokens[id] = token;
    out.types[id] = static_cast<int32_t>(type);
  };
  for (size_t i = 0; i < json.vocab.count(); ++i)
    put(static_cast<size_t>(json.vocab.id(i)), json.vocab.token(i), Type::normal);
  size_t number = 0;
  for (const auto& added : field("added_tokens")) {
    const JsonObject token(added, fmt::format("{}: added_tokens[{}]", name, number++));
    check_added_token(token);
    put(token.count("id", kMaxTokenId), token.string("content"),
        token.boolean("special", false) ? Type::control : Type::user_defined);
  }
  for (size_t i = 0, begin = 0; i + 1 < json.merges.size(); i += 2) {
    const size_t middle = json.merges[i], end = json.merges[i + 1];
    out.merges.push_back(json.merge_bytes.substr(begin, middle - begin) + " " +
                         json.merge_bytes.substr(middle, end - middle));
    begin = end;
  }
  return out;
}

}  // namespace ssm::text
