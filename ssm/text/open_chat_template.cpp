#include <algorithm>

#include "ssm/core/error.h"
#include "ssm/text/chat_template.h"
#include "ssm/text/folder_files.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using Templates = std::map<std::string, std::string>;  // sources by name; "default" is the one

constexpr uint64_t kMaxTemplateBytes = uint64_t{1} << 20;

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

// A field "chat_template": a string, or a list of {"name", "template"}.
Templates templates_of(const nlohmann::json& config, const std::string& file) {
  const auto field = config.find("chat_template");
  if (field == config.end() || field->is_null()) return {};
  if (field->is_string()) return {{"default", field->get<std::string>()}};
  SSM_CHECK(field->is_array(), "{}: chat_template is neither a string nor a list", file);
  Templates all;
  for (const auto& one : *field) {
    const bool named = one.is_object() && one.contains("name") && one.contains("template") &&
                       one["name"].is_string() && one["template"].is_string();
    SSM_CHECK(named, "{}: chat_template: an item without \"name\" and \"template\"", file);
    all[one["name"].get<std::string>()] = one["template"].get<std::string>();
  }
  return all;
}

struct Found {
  Templates templates;
  fs::path file;  // empty: none
};

Found find_templates(const fs::path& folder) {
  if (is_file(folder / "chat_template.jinja")) {
    const fs::path file = folder / "chat_template.jinja";
    return {{{"default", read_file(file, kMaxTemplateBytes)}}, file};
  }
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const fs::path file = folder / name;
    if (!is_file(file)) continue;
    Templates templates = templates_of(read_config_json(file), file.string());
    if (!templates.empty()) return {std::move(templates), file};
  }
  return {};
}

SpecialTokens special_tokens(const std::vector<fs::path>& folders, const Tokenizer* tokenizer) {
  SpecialTokens tokens;
  for (const fs::path& folder : folders) {
    for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
      const fs::path file = folder / name;
      if (!is_file(file)) continue;
      const nlohmann::json config = read_config_json(file);
      for (const char* field : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token"}) {
        const std::string text = token_text(config, field, file.string());
        if (!text.empty()) tokens.emplace(field, text);
      }
    }
  }
  if (tokenizer && tokenizer->bos()) tokens.emplace("bos_token", tokenizer->bytes_of(*tokenizer->bos()));
  if (tokenizer && tokenizer->eos()) tokens.emplace("eos_token", tokenizer->bytes_of(*tokenizer->eos()));
  return tokens;
}

std::string fitting_built_in(const Tokenizer* tokenizer) {
  const auto has = [&](const char* token) { return tokenizer && tokenizer->find(token); };
  if (has("[INST]") && has("[/INST]") && tokenizer->bos() && tokenizer->eos()) return "mistral";
  return has("<|im_start|>") && has("<|im_end|>") ? "chatml" : "plain";
}

}  // namespace

bool has_chat_template(const fs::path& folder) { return !find_templates(folder).templates.empty(); }

ChatTemplate open_chat_template(const std::vector<fs::path>& folders, const Tokenizer* tokenizer,
                                const std::string& choice) {
  SpecialTokens tokens = special_tokens(folders, tokenizer);
  if (choice == "chatml" || choice == "mistral" || choice == "plain") {
    return built_in_chat_template(choice, std::move(tokens));
  }
  if (!choice.empty() && is_file(choice)) {
    return {read_file(choice, kMaxTemplateBytes), choice, std::move(tokens)};
  }
  for (const fs::path& folder : folders) {
    const Found found = find_templates(folder);
    if (found.templates.empty()) continue;
    const auto it = found.templates.find(choice.empty() ? "default" : choice);
    if (it != found.templates.end()) return {it->second, found.file.string(), std::move(tokens)};
    std::string names;
    for (const auto& one : found.templates) names += (names.empty() ? "" : ", ") + one.first;
    fail("{}: no chat template \"{}\" in it; it has {}", found.file.string(),
         choice.empty() ? "default" : choice, names);
  }
  SSM_CHECK(choice.empty(), "{}: neither a file nor a chat template; built in are chatml, mistral and plain",
            choice);
  return built_in_chat_template(fitting_built_in(tokenizer), std::move(tokens));
}

}  // namespace ssm::text
