#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/text/folder_files.h"
#include "ssm/text/json_tokenizer.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;

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

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    SSM_CHECK(fs::exists(path, error), "{}: no such file or folder", path.string());
    if (path.extension() == ".json") return open_json(path);
    return parse_sentencepiece(read_file(path, kMaxTokenizerBytes), path.string());
  }
  if (fs::exists(path / "tokenizer.json", error)) return open_json(path / "tokenizer.json");
  const fs::path model = find_sentencepiece(path);
  return model.empty() ? nullptr : parse_sentencepiece(read_file(model, kMaxTokenizerBytes), model.string());
}

}  // namespace ssm::text
