#include "apps/ssm/chat_template.h"

#include "ssm/load/tokenizer.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNextUser = "\nUser:";

void append(std::vector<int32_t>& ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

}  // namespace

bool begins_with_bos(const LoadedModel& model) {
  if (!model.tokenizer || !model.tokenizer->bos()) return false;
  if (model.layout == "mistral") return true;
  const nlohmann::json config = tokenizer_config(model.folder);
  const auto field = config.find("add_bos_token");
  return field != config.end() && field->is_boolean() && field->get<bool>();
}

bool has_chat_template(const LoadedModel& model) {
  std::error_code error;
  return fs::exists(model.folder / "chat_template.jinja", error) ||
         tokenizer_config(model.folder).contains("chat_template");
}

ChatTemplate::ChatTemplate(const LoadedModel& model) : model_(model) {
  const text::Tokenizer& tokenizer = model.need_tokenizer();
  instruct_ = tokenizer.find("[INST]") && tokenizer.find("[/INST]") && tokenizer.bos() && tokenizer.eos();
}

std::vector<std::string> ChatTemplate::stops() const {
  return instruct_ ? std::vector<std::string>{} : std::vector<std::string>{kNextUser};
}

std::vector<int32_t> ChatTemplate::beginning() const {
  std::vector<int32_t> ids;
  if (instruct_ || begins_with_bos(model_)) ids.push_back(*model_.tokenizer->bos());
  if (!instruct_) append(ids, model_.tokenizer->encode("User:"));
  return ids;
}

std::vector<int32_t> ChatTemplate::turn(const std::string& message) const {
  const text::Tokenizer& tokenizer = *model_.tokenizer;
  if (!instruct_) return tokenizer.encode(" " + message + "\nAssistant:");
  std::vector<int32_t> ids{*tokenizer.find("[INST]")};
  append(ids, tokenizer.encode(message));
  ids.push_back(*tokenizer.find("[/INST]"));
  return ids;
}

std::vector<int32_t> ChatTemplate::reply(const std::string& message) const {
  std::vector<int32_t> ids = model_.tokenizer->encode(instruct_ ? message : " " + message);
  append(ids, closing(StopReason::length).ids);
  return ids;
}

ChatTemplate::Closing ChatTemplate::closing(StopReason reason) const {
  const text::Tokenizer& tokenizer = *model_.tokenizer;
  const bool eos = reason == StopReason::eos;
  if (instruct_) return {false, eos ? std::vector<int32_t>{} : std::vector<int32_t>{*tokenizer.eos()}};
  if (reason == StopReason::stop) return {false, {}};  // the model has written "\nUser:" itself
  return {eos, tokenizer.encode(kNextUser)};
}

}  // namespace ssm::app
