#include "apps/ssm/chat_template.h"

#include "apps/ssm/token_list.h"
#include "ssm/io/json.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNextUser = "\nUser:";

nlohmann::json tokenizer_config(const LoadedModel& model) {
  const fs::path file = model.folder / "tokenizer_config.json";
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return nlohmann::json::object();
  const nlohmann::json config = io::parse_json(read_text_file(file.string()), file.string());
  return config.is_object() ? config : nlohmann::json::object();
}

}  // namespace

bool begins_with_bos(const LoadedModel& model) {
  if (!model.tokenizer || !model.tokenizer->bos()) return false;
  if (model.layout == "mistral") return true;
  const nlohmann::json config = tokenizer_config(model);
  const auto field = config.find("add_bos_token");
  return field != config.end() && field->is_boolean() && field->get<bool>();
}

bool has_chat_template(const LoadedModel& model) {
  std::error_code error;
  return fs::exists(model.folder / "chat_template.jinja", error) ||
         tokenizer_config(model).contains("chat_template");
}

ChatTemplate::ChatTemplate(const LoadedModel& model) : model_(model) {
  const text::Tokenizer& tokenizer = model.need_tokenizer();
  instruct_ = tokenizer.find("[INST]") && tokenizer.find("[/INST]") && tokenizer.bos() && tokenizer.eos();
}

std::vector<std::string> ChatTemplate::stops() const {
  return instruct_ ? std::vector<std::string>{} : std::vector<std::string>{kNextUser};
}

std::vector<int32_t> ChatTemplate::turn(const std::string& message, const Generated* previous) const {
  const text::Tokenizer& tokenizer = *model_.tokenizer;
  if (instruct_) {
    std::vector<int32_t> ids;
    if (!previous) ids.push_back(*tokenizer.bos());
    if (previous && previous->reason != StopReason::eos) ids.push_back(*tokenizer.eos());
    ids.push_back(*tokenizer.find("[INST]"));
    const std::vector<int32_t> text = tokenizer.encode(message);
    ids.insert(ids.end(), text.begin(), text.end());
    ids.push_back(*tokenizer.find("[/INST]"));
    return ids;
  }
  // A reply that ran into "\nUser:" has written it into the state already.
  std::string begin = !previous ? "User:" : previous->reason == StopReason::stop ? "" : kNextUser;
  std::vector<int32_t> ids = tokenizer.encode(begin + " " + message + "\nAssistant:");
  if (!previous && begins_with_bos(model_)) ids.insert(ids.begin(), *tokenizer.bos());
  return ids;
}

}  // namespace ssm::app
