#include "ssm/text/ggml_tokenizer.h"

#include "ssm/text/folder_files.h"
#include "ssm/text/ggml_parts.h"
#include "ssm/text/json_tokenizer.h"
#include "ssm/text/tokenizer_place.h"

namespace ssm::text {
namespace {

enum class Kind { bpe, sentencepiece };

Kind kind_of(const GgmlTokenizer& tokenizer, const std::string& name) {
  const size_t count = tokenizer.tokens.size();
  SSM_CHECK(count > 0, "{}: key tokenizer.ggml.tokens is missing or empty", name);
  SSM_CHECK(tokenizer.types.empty() || tokenizer.types.size() == count,
            "{}: key tokenizer.ggml.token_type has {} items, for {} tokens", name, tokenizer.types.size(),
            count);
  if (tokenizer.kind == "gpt2") return Kind::bpe;
  SSM_CHECK(tokenizer.kind == "llama", "{}: key tokenizer.ggml.model is \"{}\"; known are gpt2 and llama",
            name, tokenizer.kind);
  SSM_CHECK(tokenizer.scores.empty() || tokenizer.scores.size() == count,
            "{}: key tokenizer.ggml.scores has {} items, for {} tokens", name, tokenizer.scores.size(),
            count);
  return Kind::sentencepiece;
}

std::optional<int32_t> within(const std::optional<int32_t>& id, const GgmlTokenizer& tokenizer) {
  const bool is_token = id && *id >= 0 && static_cast<size_t>(*id) < tokenizer.tokens.size();
  return is_token ? id : std::nullopt;
}

// tokenizer_config.json, which names the special tokens.
std::string config_text(const GgmlTokenizer& tokenizer) {
  nlohmann::ordered_json config;
  if (tokenizer.add_bos) config["add_bos_token"] = *tokenizer.add_bos;
  const auto name_token = [&](const char* field, const std::optional<int32_t>& id) {
    if (const auto known = within(id, tokenizer))
      config[field] = tokenizer.tokens[static_cast<size_t>(*known)];
  };
  name_token("bos_token", tokenizer.bos);
  name_token("eos_token", tokenizer.eos);
  name_token("unk_token", tokenizer.unk);
  name_token("pad_token", tokenizer.pad);
  config["tokenizer_class"] = tokenizer.kind == "gpt2" ? "PreTrainedTokenizerFast" : "LlamaTokenizer";
  return config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const GgmlTokenizer& tokenizer, const std::string& name) {
  if (kind_of(tokenizer, name) == Kind::sentencepiece)
    return parse_sentencepiece(sentencepiece_of_ggml(tokenizer, name), name);
  auto made = std::make_unique<JsonTokenizer>(bpe_of_ggml(tokenizer, name), name);
  made->set_special_tokens(within(tokenizer.bos, tokenizer), within(tokenizer.eos, tokenizer));
  return made;
}

std::vector<TokenizerFile> tokenizer_files(const GgmlTokenizer& tokenizer, const std::string& name) {
  if (kind_of(tokenizer, name) == Kind::sentencepiece)
    return {{"tokenizer.model", sentencepiece_of_ggml(tokenizer, name)},
            {"tokenizer_config.json", config_text(tokenizer)}};
  return {{"tokenizer.json", text_of(bpe_of_ggml(tokenizer, name))},
          {"tokenizer_config.json", config_text(tokenizer)}};
}

std::optional<GgmlTokenizer> read_ggml_tokenizer(const std::filesystem::path& path) {
  const std::filesystem::path file = tokenizer_place(path);
  if (file.empty()) return std::nullopt;
  const std::string name = file.string(), bytes = read_file(file, kMaxTokenizerBytes);
  const bool is_json = file.extension() == ".json";
  GgmlTokenizer out =
      is_json ? ggml_of_bpe(read_tokenizer_json(bytes, name), name) : ggml_of_sentencepiece(bytes, name);
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(path);
  const std::filesystem::path folder = file.parent_path();
  out.bos = tokenizer->bos();
  out.eos = tokenizer->eos();
  if (is_json) out.unk = special_token(folder, "unk_token", *tokenizer);
  out.pad = special_token(folder, "pad_token", *tokenizer);
  out.add_bos = adds_bos(folder);
  return out;
}

}  // namespace ssm::text
