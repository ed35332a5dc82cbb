#include "ssm/load/chat.h"

#include "ssm/text/folder_files.h"

namespace ssm {

namespace fs = std::filesystem;

bool begins_with_bos(const LoadedModel& model) {
  if (!model.tokenizer || !model.tokenizer->bos()) return false;
  if (model.layout == "mistral") return true;
  const fs::path file = model.folder / "tokenizer_config.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return false;
  const nlohmann::json config = text::read_config_json(file);
  const auto field = config.find("add_bos_token");
  return field != config.end() && field->is_boolean() && field->get<bool>();
}

text::ChatTemplate open_chat_template(const LoadedModel& model, const fs::path& adapter,
                                      const std::string& choice) {
  std::vector<fs::path> folders;
  if (!adapter.empty()) folders.push_back(adapter);
  if (!model.folder.empty()) folders.push_back(model.folder);
  return text::open_chat_template(folders, model.tokenizer.get(), choice);
}

std::vector<int32_t> encode_chat(const LoadedModel& model, const text::ChatTemplate& chat,
                                 std::string_view text, bool begins) {
  std::vector<int32_t> ids = model.need_tokenizer().encode(text);
  if (begins && chat.is_plain() && begins_with_bos(model)) ids.insert(ids.begin(), *model.tokenizer->bos());
  return ids;
}

}  // namespace ssm
