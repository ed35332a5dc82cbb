#include "ssm/load/tokenizer.h"

#include <nlohmann/json.hpp>

#include "ssm/core/atomic_file.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/json.h"
#include "ssm/io/mapped_file.h"
#include "ssm/text/chat_template.h"
#include "ssm/text/tokenizer_place.h"

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

// The name under which a folder's reader finds `file`.
std::string name_in_folder(const fs::path& file) {
  const std::string name = file.filename().string();
  if (file.extension() == ".json") return "tokenizer.json";
  return name.starts_with("tokenizer.model") ? name : "tokenizer.model";
}

void copy_tokenizer_of_files(const fs::path& from, const fs::path& to) {
  const fs::path file = text::tokenizer_place(from);
  std::error_code error;
  const bool is_folder = fs::is_directory(from, error);
  io::copy_tokenizer_settings(folder_of_tokenizer(from), to);
  const auto copy = [&](const fs::path& path) {
    write_whole(to / name_in_folder(path), io::map_file(path).text());
  };
  if (!file.empty()) copy(file);
  // Transformers' slow tokenizer reads this one, also where there is a tokenizer.json.
  const fs::path model = from / "tokenizer.model";
  if (is_folder && file != model && fs::exists(model, error)) copy(model);
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

fs::path folder_of_tokenizer(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) ? path.parent_path() : path;
}

std::unique_ptr<text::Tokenizer> open_model_tokenizer(const fs::path& path) {
  if (!io::is_gguf(path)) return text::open_tokenizer(path);
  const auto file = io::GgufFile::open(path);
  const std::optional<text::GgmlTokenizer> tokenizer = ggml_tokenizer(*file);
  return tokenizer ? text::make_tokenizer(*tokenizer, file->file()) : nullptr;
}

std::optional<bool> adds_bos(const fs::path& model) {
  if (!io::is_gguf(model)) return text::adds_bos(folder_of_tokenizer(model));
  const auto tokenizer = ggml_tokenizer(*io::GgufFile::open(model));
  return tokenizer ? tokenizer->add_bos : std::nullopt;
}

std::optional<std::string> model_chat_template(const fs::path& model) {
  if (!io::is_gguf(model)) return text::chat_template_source(folder_of_tokenizer(model));
  const auto file = io::GgufFile::open(model);
  const auto source = file->text(kChatTemplate);
  return source ? std::optional(std::string(*source)) : std::nullopt;
}

void write_bos_setting(const fs::path& folder) {
  const std::unique_ptr<text::Tokenizer> tokenizer = text::open_tokenizer(folder);
  if (!tokenizer || !tokenizer->bos()) return;
  const fs::path file = folder / "tokenizer_config.json";
  nlohmann::ordered_json config = nlohmann::ordered_json::object();
  std::error_code error;
  if (fs::exists(file, error)) {
    const io::Bytes bytes = io::map_file(file);
    config = nlohmann::ordered_json::parse(io::parse_json(bytes.text(), bytes.name).dump());
  }
  config["add_bos_token"] = true;
  const auto name_token = [&](const char* field, const std::optional<int32_t>& id) {
    if (id && !config.contains(field)) config[field] = std::string(tokenizer->bytes_of(*id));
  };
  name_token("bos_token", tokenizer->bos());
  name_token("eos_token", tokenizer->eos());
  name_token("unk_token", tokenizer->find("<unk>"));
  if (!config.contains("tokenizer_class") && text::tokenizer_place(folder).extension() != ".json")
    config["tokenizer_class"] = "LlamaTokenizer";
  write_whole(file, config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void copy_tokenizer(const fs::path& from, const fs::path& to) {
  if (!io::is_gguf(from)) return copy_tokenizer_of_files(from, to);
  const auto gguf = io::GgufFile::open(from);
  const std::optional<text::GgmlTokenizer> tokenizer = ggml_tokenizer(*gguf);
  if (!tokenizer) return;
  for (auto& [name, bytes] : text::tokenizer_files(*tokenizer, gguf->file())) {
    if (const auto chat = gguf->text(kChatTemplate); chat && name == "tokenizer_config.json") {
      nlohmann::ordered_json config = nlohmann::ordered_json::parse(bytes);
      config["chat_template"] = *chat;
      bytes = config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    }
    write_whole(to / name, bytes);
  }
}

}  // namespace ssm
