#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/text/folder_files.h"
#include "ssm/text/json_tokenizer.h"
#include "ssm/text/tokenizer_place.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;

std::unique_ptr<Tokenizer> open_json(const fs::path& path) {
  const std::string name = path.string();
  auto tokenizer =
      std::make_unique<JsonTokenizer>(read_tokenizer_json(read_file(path, kMaxTokenizerBytes), name), name);
  const fs::path folder = path.parent_path();
  const auto bos = special_token(folder, "bos_token", *tokenizer);
  tokenizer->set_special_tokens(bos, special_token(folder, "eos_token", *tokenizer));
  return tokenizer;
}

// tokenizer.model, or else the last of tokenizer.model.v1, .v2, .v3 ...; empty: none.
fs::path find_sentencepiece(const fs::path& folder) {
  std::error_code error;
  if (fs::is_regular_file(folder / "tokenizer.model", error)) return folder / "tokenizer.model";
  fs::path last;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (name.starts_with("tokenizer.model.") && it->is_regular_file(ignored) &&
        name > last.filename().string()) {
      last = it->path();
    }
  }
  SSM_CHECK(!error, "{}: {}", folder.string(), error.message());
  return last;
}

}  // namespace

std::optional<int32_t> special_token(const fs::path& folder, const char* field, const Tokenizer& tokenizer) {
  for (const char* file : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path path = folder / file;
    std::error_code error;
    if (!fs::exists(path, error)) continue;
    const std::string name = path.string();
    const std::string token = token_text(read_config_json(path), field, name);
    if (token.empty()) continue;
    const auto id = tokenizer.find(token);
    if (!id)
      log(LogLevel::warning, fmt::format("{}: {} \"{}\" is not in the vocabulary", name, field, token));
    return id;
  }
  return std::nullopt;
}

std::optional<bool> adds_bos(const fs::path& folder) {
  const fs::path path = folder / "tokenizer_config.json";
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  const nlohmann::json config = read_config_json(path);
  const auto field = config.find("add_bos_token");
  return field != config.end() && field->is_boolean() ? std::optional(field->get<bool>()) : std::nullopt;
}

fs::path tokenizer_place(const fs::path& path) {
  std::error_code error;
  SSM_CHECK(fs::exists(path, error), "{}: no such file or folder", path.string());
  if (!fs::is_directory(path, error)) return path;
  return fs::exists(path / "tokenizer.json", error) ? path / "tokenizer.json" : find_sentencepiece(path);
}

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  const fs::path file = tokenizer_place(path);
  if (file.empty()) return nullptr;
  if (file.extension() == ".json") return open_json(file);
  return parse_sentencepiece(read_file(file, kMaxTokenizerBytes), file.string());
}

}  // namespace ssm::text
