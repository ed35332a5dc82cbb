#include "ssm/load/tokenizer.h"

#include "ssm/io/atomic_file.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/json.h"
#include "ssm/io/mapped_file.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModel = "tokenizer.ggml.model";
constexpr const char* kChatTemplate = "tokenizer.chat_template";

template <class T>
std::vector<std::string> strings(const T& views) {
  return {views.begin(), views.end()};
}

std::optional<int32_t> id_of(const io::GgufFile& file, const char* key) {
  const std::optional<int64_t> id = file.integer(key);
  return id && *id >= 0 && *id < INT32_MAX ? std::optional(static_cast<int32_t>(*id)) : std::nullopt;
}

}  // namespace

std::optional<text::GgmlTokenizer> ggml_tokenizer(const io::GgufFile& file) {
  text::GgmlTokenizer out;
  out.kind = file.text(kModel).value_or("");
  if (out.kind.empty() || out.kind == "none" || out.kind == "no_vocab") return std::nullopt;
  out.pre = file.text("tokenizer.ggml.pre").value_or("");
  out.tokens = strings(file.texts("tokenizer.ggml.tokens"));
  out.types = file.integers("tokenizer.ggml.token_type");
  out.scores = file.reals("tokenizer.ggml.scores");
  out.merges = strings(file.texts("tokenizer.ggml.merges"));
  out.bos = id_of(file, "tokenizer.ggml.bos_token_id");
  out.eos = id_of(file, "tokenizer.ggml.eos_token_id");
  out.unk = id_of(file, "tokenizer.ggml.unknown_token_id");
  out.pad = id_of(file, "tokenizer.ggml.padding_token_id");
  out.add_bos = file.flag("tokenizer.ggml.add_bos_token");
  if (out.kind == "llama" && !out.add_bos) out.add_bos = true;
  out.add_space_prefix = file.flag("tokenizer.ggml.add_space_prefix").value_or(true);
  out.remove_extra_whitespaces = file.flag("tokenizer.ggml.remove_extra_whitespaces").value_or(false);
  return out;
}

std::unique_ptr<text::Tokenizer> open_model_tokenizer(const fs::path& path) {
  if (!io::is_gguf(path)) return text::open_tokenizer(path);
  const auto file = io::GgufFile::open(path);
  const std::optional<text::GgmlTokenizer> tokenizer = ggml_tokenizer(*file);
  return tokenizer ? text::make_tokenizer(*tokenizer, file->file()) : nullptr;
}

nlohmann::json tokenizer_config(const fs::path& model) {
  nlohmann::json config = nlohmann::json::object();
  std::error_code error;
  if (io::is_gguf(model)) {
    const auto file = io::GgufFile::open(model);
    if (const auto tokenizer = ggml_tokenizer(*file); tokenizer && tokenizer->add_bos)
      config["add_bos_token"] = *tokenizer->add_bos;
    if (const auto chat = file->text(kChatTemplate)) config["chat_template"] = *chat;
  } else if (const fs::path path = model / "tokenizer_config.json"; fs::is_regular_file(path, error)) {
    const io::Bytes text = io::map_file(path);
    const nlohmann::json read = io::parse_json(text.text(), text.name);
    if (read.is_object()) config = read;
  }
  return config;
}

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  if (!io::is_gguf(from)) return io::copy_tokenizer_files(from, to);
  const auto gguf = io::GgufFile::open(from);
  const std::optional<text::GgmlTokenizer> tokenizer = ggml_tokenizer(*gguf);
  if (!tokenizer) return;
  for (auto& [name, bytes] : text::tokenizer_files(*tokenizer, gguf->file())) {
    if (const auto chat = gguf->text(kChatTemplate); chat && name == "tokenizer_config.json") {
      nlohmann::ordered_json config = nlohmann::ordered_json::parse(bytes);
      config["chat_template"] = *chat;
      bytes = config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    }
    io::AtomicFile out(to / name);
    out.write(bytes);
    out.commit();
  }
}

}  // namespace ssm
