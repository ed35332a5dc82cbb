#include "ssm/load/chat.h"

#include "ssm/io/gguf.h"
#include "ssm/load/tokenizer.h"

namespace ssm {

namespace fs = std::filesystem;

namespace {

// What a template of a GGUF file may name.
text::SpecialTokens special_tokens(const text::Tokenizer& tokenizer) {
  text::SpecialTokens tokens;
  if (tokenizer.bos()) tokens.emplace("bos_token", tokenizer.bytes_of(*tokenizer.bos()));
  if (tokenizer.eos()) tokens.emplace("eos_token", tokenizer.bytes_of(*tokenizer.eos()));
  return tokens;
}

}  // namespace

bool begins_with_bos(const LoadedModel& model) {
  if (!model.tokenizer || !model.tokenizer->bos()) return false;
  if (model.layout == "mistral") return true;
  const nlohmann::json config = tokenizer_config(model.folder);
  const auto field = config.find("add_bos_token");
  return field != config.end() && field->is_boolean() && field->get<bool>();
}

bool has_chat_template(const LoadedModel& model) { return model_chat_template(model.folder).has_value(); }

text::ChatTemplate open_chat_template(const LoadedModel& model, const fs::path& adapter,
                                      const std::string& choice) {
  std::vector<fs::path> folders;
  if (!adapter.empty()) folders.push_back(adapter);
  if (choice.empty() && io::is_gguf(model.folder) &&
      (adapter.empty() || !text::chat_template_source(adapter))) {
    if (const auto source = model_chat_template(model.folder))
      return {*source, model.folder.string(), special_tokens(model.need_tokenizer())};
  }
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
