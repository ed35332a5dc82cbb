#include "ssm/text/chat_template.h"

#include <algorithm>

#include "ssm/core/error.h"
#include "ssm/text/built_in_templates.h"

namespace ssm::text {
namespace {

using Json = nlohmann::ordered_json;

void check_messages(const Json& messages) {
  SSM_CHECK(messages.is_array() && !messages.empty(), "messages: not a list of messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    SSM_CHECK(messages[i].is_object(), "messages[{}]: not an object", i);
    const auto role = messages[i].find("role");
    SSM_CHECK(role != messages[i].end(), "messages[{}]: no field \"role\"", i);
    SSM_CHECK(role->is_string(), "messages[{}]: field \"role\" is not a string", i);
    SSM_CHECK(messages[i].contains("content") || messages[i].contains("tool_calls"),
              "messages[{}]: no field \"content\"", i);
  }
}

bool is_assistant(const Json& message) { return message.at("role") == "assistant"; }

void add(std::vector<ChatPiece>& pieces, std::string_view text, bool learn) {
  if (text.empty()) return;
  if (!pieces.empty() && pieces.back().learn == learn) {
    pieces.back().text += text;
  } else {
    pieces.push_back({std::string(text), learn});
  }
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, std::string name, SpecialTokens tokens)
    : name_(std::move(name)), source_(source), template_(source, name_), tokens_(std::move(tokens)) {}

jinja::Rendered ChatTemplate::rendered(const Json& messages, const ChatOptions& options) const {
  check_messages(messages);
  Json variables;
  for (const auto& [token, text] : tokens_) variables[token] = text;
  variables["messages"] = messages;
  variables["tools"] = options.tools;
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = options.add_generation_prompt;
  return template_.render(variables, options.now);
}

std::string ChatTemplate::render(const Json& messages, const ChatOptions& options) const {
  return rendered(messages, options).text;
}

std::vector<ChatPiece> ChatTemplate::pieces(const Json& messages, const ChatOptions& options) const {
  const jinja::Rendered whole = rendered(messages, options);
  SSM_CHECK(std::any_of(messages.begin(), messages.end(), is_assistant),
            "messages: none of them is the assistant's");
  const std::string_view text = whole.text;
  std::vector<ChatPiece> pieces;
  size_t done = 0;
  if (template_.marks_generation()) {
    for (const auto [begin, end] : whole.generated) {
      add(pieces, text.substr(done, begin - done), false);
      add(pieces, text.substr(begin, end - begin), true);
      done = end;
    }
  } else {
    Json before = Json::array();
    for (size_t i = 0; i < messages.size(); ++i) {
      if (is_assistant(messages[i])) {
        ChatOptions prompt = options, turn = options;
        prompt.add_generation_prompt = true;
        turn.add_generation_prompt = false;
        const std::string asked = before.empty() ? "" : render(before, prompt);
        before.push_back(messages[i]);
        const std::string answered = render(before, turn);
        SSM_CHECK(answered.starts_with(asked) && text.starts_with(answered) && asked.size() >= done,
                  "{}: messages[{}]: which part of the text is this answer cannot be told, as this template "
                  "does not write a conversation as its beginning and more; it needs generation blocks",
                  name_, i);
        add(pieces, text.substr(done, asked.size() - done), false);
        add(pieces, std::string_view(answered).substr(asked.size()), true);
        done = answered.size();
      } else {
        before.push_back(messages[i]);
      }
    }
  }
  add(pieces, text.substr(done), false);
  return pieces;
}

ChatTemplate built_in_chat_template(const std::string& name, SpecialTokens tokens) {
  const char* const source = name == "chatml"    ? kChatMl
                             : name == "mistral" ? kMistral
                             : name == "plain"   ? kPlain
                                                 : nullptr;
  SSM_CHECK(source, "{}: no such chat template; built in are chatml, mistral and plain", name);
  ChatTemplate built_in(source, name, std::move(tokens));
  built_in.plain_ = name == "plain";
  return built_in;
}

}  // namespace ssm::text
