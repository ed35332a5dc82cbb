#include "ssm/load/chat.h"

#include "ssm/core/atomic_file.h"
#include "ssm/load/tokenizer.h"

namespace ssm {

namespace fs = std::filesystem;

bool begins_with_bos(const LoadedModel& model) {
  if (!model.tokenizer || !model.tokenizer->bos()) return false;
  if (model.layout == "mistral") return true;
  return adds_bos(model.folder).value_or(false);
}

text::ChatTemplate open_chat_template(const LoadedModel& model, const fs::path& adapter,
                                      const std::string& choice) {
  const bool gguf = io::is_gguf(model.folder);
  std::vector<fs::path> folders;
  if (!gguf && !model.folder.empty()) folders.push_back(folder_of_tokenizer(model.folder));
  if (choice.empty() && (adapter.empty() || !text::chat_template_source(adapter))) {
    std::string source = model.chat_template;
    if (source.empty() && gguf) source = model_chat_template(model.folder).value_or("");
    if (!source.empty()) {
      return {source, model.folder.string() + ": chat template",
              text::special_tokens(folders, model.tokenizer.get())};
    }
  }
  if (!adapter.empty()) folders.insert(folders.begin(), adapter);
  return text::open_chat_template(folders, model.tokenizer.get(), choice);
}

bool has_chat_template(const LoadedModel& model) {
  return !model.chat_template.empty() || model_chat_template(model.folder);
}

void save_bos_setting(const LoadedModel& model, const fs::path& folder) {
  if (model.layout == "mistral") write_bos_setting(folder);
}

void save_chat_template(const LoadedModel& model, const fs::path& folder) {
  if (model.chat_template.empty()) return;
  write_whole(folder / "chat_template.jinja", model.chat_template);
}

std::vector<int32_t> encode_chat(const LoadedModel& model, const text::ChatTemplate& chat,
                                 std::string_view text, bool begins) {
  std::vector<int32_t> ids = model.need_tokenizer().encode(text);
  if (begins && chat.is_plain() && begins_with_bos(model)) ids.insert(ids.begin(), *model.tokenizer->bos());
  return ids;
}

}  // namespace ssm
