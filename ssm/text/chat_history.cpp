#include "ssm/text/chat_history.h"

#include <algorithm>

#include "ssm/core/error.h"
#include "ssm/text/jinja/python_text.h"

namespace ssm::text {
namespace {

using Json = nlohmann::ordered_json;

// Stand for an answer and for a message. No template does anything to them.
constexpr std::string_view kAnswer = "ssmAnswerStandsHere", kMessage = "ssmMessageStandsHere";

std::string_view without_end(std::string_view text) {
  return jinja::strip(text, std::nullopt, jinja::Side::right);
}

Json message(const char* role, std::string_view content) { return {{"role", role}, {"content", content}}; }

// The first token of `text` where it looks like one that stands between messages: <...> or [...].
std::string first_mark(std::string_view text, const Tokenizer& tokenizer) {
  const bool angle = text.starts_with('<');
  if (!angle && !text.starts_with('[')) return {};
  const std::vector<int32_t> ids = tokenizer.encode(text);
  if (ids.empty()) return {};
  const std::string token(tokenizer.bytes_of(ids[0]));
  const bool whole = token.size() > 2 && token.ends_with(angle ? '>' : ']') && text.starts_with(token);
  return whole ? token : "";
}

}  // namespace

ChatHistory::ChatHistory(const ChatTemplate& chat, const Tokenizer& tokenizer, std::string system,
                         ChatOptions options)
    : chat_(chat), system_(std::move(system)), options_(std::move(options)) {
  options_.add_generation_prompt = true;
  find_closing(tokenizer);
  reset();
}

void ChatHistory::find_closing(const Tokenizer& tokenizer) {
  std::string text;
  try {
    text = chat_.render({message("user", kMessage), message("assistant", kAnswer), message("user", kMessage)},
                        options_);
  } catch (const Error&) {
    return;  // this template has no second turn: say() will throw where one is asked for
  }
  const size_t answer = text.find(kAnswer), next = text.rfind(kMessage);
  if (answer == text.npos || next == text.npos || next < answer + kAnswer.size()) return;
  const size_t begin = answer + kAnswer.size();
  // A message's first word goes with the space before it.
  closing_ = without_end(std::string_view(text).substr(begin, next - begin));
  stop_ = first_mark(closing_, tokenizer);
  if (stop_.empty()) stop_ = closing_;
}

void ChatHistory::reset() {
  past_ = {.messages = Json::array(), .prompt = {}, .read = {}};
  if (!system_.empty()) past_.messages.push_back(message("system", system_));
  known_ = true;
}

void ChatHistory::go_on(Past past) {
  past_ = std::move(past);
  known_ = true;
}

ChatHistory::Turn ChatHistory::say(const std::string& text) {
  return say_all(Json::array({message("user", text)}));
}

ChatHistory::Turn ChatHistory::say_all(const Json& said) {
  Json messages = past_.messages;
  const size_t answer = messages.size() - 1;  // where there is one
  for (const Json& one : said) messages.push_back(one);
  std::string prompt = chat_.render(messages, options_);
  Turn turn{prompt, true};
  if (!past_.prompt.empty() || !known_) {
    const Json kept = std::exchange(messages[answer]["content"], kAnswer);
    const std::string whole = chat_.render(messages, options_);
    messages[answer]["content"] = kept;
    const size_t at = whole.rfind(kAnswer);
    const std::string_view before = std::string_view(whole).substr(0, at);
    const std::string_view after =
        at == whole.npos ? std::string_view() : std::string_view(whole).substr(at + kAnswer.size());
    const bool goes_on = at != whole.npos && after.starts_with(past_.read) &&
                         (past_.prompt.empty() || without_end(before) == without_end(past_.prompt));
    SSM_CHECK(
        goes_on || known_,
        "{}: this template writes earlier messages otherwise once a later one is there, so it cannot go "
        "on from a state that was loaded",
        chat_.name());
    if (goes_on) turn = {std::string(after.substr(past_.read.size())), false};
  }
  past_ = {.messages = std::move(messages), .prompt = std::move(prompt), .read = {}};
  return turn;
}

void ChatHistory::answered(const std::string& text, std::string behind) {
  past_.messages.push_back(message("assistant", jinja::strip(text, std::nullopt)));
  past_.read = std::move(behind);
}

std::string ChatHistory::close() {
  std::string rest = closing_.substr(std::min(past_.read.size(), closing_.size()));
  past_.read = closing_;
  return rest;
}

void ChatHistory::resume() {
  reset();
  past_.messages.push_back(message("user", kMessage));
  past_.messages.push_back(message("assistant", kAnswer));
  past_.read = closing_;
  known_ = false;
}

}  // namespace ssm::text
