#include "ssm/load/save_gguf.h"

#include "ssm/io/gguf_model_writer.h"
#include "ssm/load/tokenizer.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

// One token a row of the embedding: llama.cpp takes the one for the other.
void fill_up(text::GgmlTokenizer& tokenizer, int64_t rows, const std::string& file) {
  SSM_CHECK(std::ssize(tokenizer.tokens) <= rows,
            "{}: the tokenizer has {} tokens, the model {} rows for them", file, tokenizer.tokens.size(),
            rows);
  text::add_padding(tokenizer, static_cast<size_t>(rows));
}

// The tokenizer's own, or else the config's first.
std::optional<int64_t> special_id(const std::optional<int32_t>& own, const nlohmann::json& config,
                                  const char* field) {
  if (own) return own;
  const nlohmann::json& given = config.at(field);
  const nlohmann::json first = given.is_array() && !given.empty() ? given[0] : given;
  return first.is_number_integer() ? std::optional(first.get<int64_t>()) : std::nullopt;
}

void add_tokenizer_keys(io::GgufWriter& writer, const nlohmann::json& config,
                        const EmbeddedTokenizer& embedded) {
  const auto id = [&](const char* key, const std::optional<int64_t>& value) {
    if (value) writer.u32(fmt::format("tokenizer.ggml.{}_token_id", key), *value);
  };
  const int64_t rows = config.at("vocab_size");
  text::GgmlTokenizer tokenizer = embedded.tokenizer.value_or(text::GgmlTokenizer{});
  if (embedded.tokenizer) {
    fill_up(tokenizer, rows, writer.file());
    writer.text("tokenizer.ggml.model", tokenizer.kind);
    writer.text("tokenizer.ggml.pre", tokenizer.pre);
    writer.texts("tokenizer.ggml.tokens", tokenizer.tokens);
    if (!tokenizer.scores.empty()) writer.reals("tokenizer.ggml.scores", tokenizer.scores);
    writer.integers("tokenizer.ggml.token_type", tokenizer.types);
    if (tokenizer.kind == "gpt2") writer.texts("tokenizer.ggml.merges", tokenizer.merges);
    if (tokenizer.kind == "llama") {
      writer.flag("tokenizer.ggml.add_space_prefix", tokenizer.add_space_prefix);
      writer.flag("tokenizer.ggml.remove_extra_whitespaces", tokenizer.remove_extra_whitespaces);
    }
    writer.flag("tokenizer.ggml.add_bos_token", tokenizer.add_bos.value_or(tokenizer.kind == "llama"));
    writer.flag("tokenizer.ggml.add_eos_token", false);
    if (!embedded.chat_template.empty()) writer.text("tokenizer.chat_template", embedded.chat_template);
  } else {
    writer.text("tokenizer.ggml.model", "none");
    writer.u32(io::gguf_architecture(config) + ".vocab_size", rows);
  }
  id("bos", special_id(tokenizer.bos, config, "bos_token_id"));
  id("eos", special_id(tokenizer.eos, config, "eos_token_id"));
  id("unknown", tokenizer.unk);
  id("padding", special_id(tokenizer.pad, config, "pad_token_id"));
}

}  // namespace

EmbeddedTokenizer embedded_tokenizer(const fs::path& from) {
  EmbeddedTokenizer out;
  out.chat_template = model_chat_template(from).value_or("");
  out.tokenizer =
      io::is_gguf(from) ? ggml_tokenizer(*io::GgufFile::open(from)) : text::read_ggml_tokenizer(from);
  return out;
}

void save_gguf(const fs::path& path, const nlohmann::json& config, const std::string& name,
               std::span<const io::LazyWeight> weights, const EmbeddedTokenizer& tokenizer) {
  io::GgufWriter writer(path);
  io::add_model_keys(writer, config, name, weights);
  add_tokenizer_keys(writer, config, tokenizer);
  io::add_model_tensors(writer, config, weights);
  writer.write();
}

}  // namespace ssm
