#include "ssm/serve/session_turn.h"

#include "ssm/core/clock.h"
#include "ssm/load/chat.h"
#include "ssm/serve/sessions.h"

namespace ssm::serve {
namespace {

constexpr size_t kMostTranscript = size_t{1} << 20;  // bytes: of a completion its end is kept

// The end of a text, from a character's beginning on.
void keep_end(std::string& text) {
  if (text.size() <= kMostTranscript) return;
  size_t at = text.size() - kMostTranscript;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
  text.erase(0, at);
}

}  // namespace

// Of one request on the scheduler's thread.
class SessionTurn::Part : public Listener {
 public:
  Part(std::shared_ptr<SessionTurn> turn, std::shared_ptr<Listener> inner)
      : turn_(std::move(turn)), inner_(std::move(inner)) {}

  void on_start(int64_t cached_tokens) override { inner_->on_start(cached_tokens); }
  void on_prompt_score(int64_t position, const TokenScores& scores) override {
    inner_->on_prompt_score(position, scores);
  }
  bool on_token(const TokenEvent& event) override {
    if (event.id >= 0) answer_.ids.push_back(event.id);
    answer_.shown += event.text;
    return inner_->on_token(event);
  }
  void on_end(size_t choice, StopReason reason) override {
    answer_.reason = reason;
    inner_->on_end(choice, reason);
  }
  void on_finish(Finished finished) override { turn_->end(answer_, std::move(finished), inner_); }

 private:
  std::shared_ptr<SessionTurn> turn_;
  std::shared_ptr<Listener> inner_;
  Answer answer_;
};

SessionTurn::SessionTurn(Sessions& sessions, const LoadedModel& model, std::string name, Session before)
    : sessions_(sessions), model_(model), name_(std::move(name)), before_(std::move(before)) {}

SessionTurn::~SessionTurn() {
  if (!ended_) sessions_.end(name_, nullptr, {});
}

void SessionTurn::check_kind(SessionKind kind, const char* field) const {
  if (is_new() || before_.about.kind == kind) return;
  throw ApiError(400, fmt::format("session {} is a {}", name_, name_of(before_.about.kind)), field);
}

// The request reads `ids` after what the session holds.
void SessionTurn::go_on(Request& request, std::vector<int32_t> ids) const {
  TextCopy text = *before_.text;
  if (before_.about.ended && !ids.empty()) {
    text.note.pending.pop_back();
    --text.note.tokens;
  }
  request.from = std::make_shared<const TextCopy>(std::move(text));
  request.prompt = std::move(ids);
}

void SessionTurn::write(Request& request, std::vector<int32_t> ids) {
  check_kind(SessionKind::completion, "session");
  kind_ = SessionKind::completion;
  request.keep_text = true;
  if (model_.tokenizer) prompt_text_ = model_.tokenizer->decode(ids);
  if (is_new()) {
    request.prompt = std::move(ids);
  } else {
    go_on(request, std::move(ids));
  }
}

void SessionTurn::say(Request& request, const nlohmann::ordered_json& messages, const ChatFormat& format) {
  check_kind(SessionKind::chat, "session");
  kind_ = SessionKind::chat;
  request.keep_text = true;
  if (messages.back()["role"] == "assistant") {
    throw ApiError(400, "the last message is the assistant's own", "messages");
  }
  history_.emplace(*format.format, model_.need_tokenizer());
  if (!is_new()) history_->go_on(before_.about.chat);
  const text::ChatHistory::Turn turn = history_->say_all(messages);
  std::vector<int32_t> ids = encode_chat(model_, *format.format, turn.text, turn.anew);
  if (history_->past().prompt.size() > kMostTranscript) {
    throw ApiError(400, fmt::format("session {} would have more than {} bytes", name_, kMostTranscript),
                   "messages");
  }
  if (is_new() || turn.anew) {
    request.prompt = std::move(ids);
  } else {
    go_on(request, std::move(ids));
  }
}

std::shared_ptr<Listener> SessionTurn::listener(std::shared_ptr<Listener> inner) {
  return std::make_shared<Part>(shared_from_this(), std::move(inner));
}

// The session with the answer.
std::shared_ptr<const Session> SessionTurn::after(const Answer& answer, TextCopy text) {
  auto session = std::make_shared<Session>();
  SessionNote& about = session->about;
  about = before_.about;
  about.kind = kind_;
  about.updated = unix_seconds();
  ++about.turns;
  about.ended = answer.reason == StopReason::eos;
  std::string written;  // by the model, a stop text too
  if (model_.tokenizer) {
    text::StreamDecoder decoder(*model_.tokenizer);
    const size_t count = answer.ids.size() - (about.ended ? 1 : 0);
    for (size_t i = 0; i < count; ++i) written += decoder.push(answer.ids[i]);
    written += decoder.finish();
  }
  if (kind_ == SessionKind::completion) {
    about.text += prompt_text_ + written;
    keep_end(about.text);
  } else {
    const bool more = written.size() > answer.shown.size() && written.starts_with(answer.shown);
    history_->answered(answer.shown, more ? written.substr(answer.shown.size()) : "");
    about.chat = history_->past();
  }
  session->text = std::make_shared<const TextCopy>(std::move(text));
  return session;
}

void SessionTurn::end(const Answer& answer, Finished finished, const std::shared_ptr<Listener>& inner) {
  std::shared_ptr<const Session> session;
  const bool given_up = answer.reason == StopReason::cancelled && answer.ids.empty();
  if (finished.error.empty() && finished.text && !given_up) {
    session = after(answer, std::move(*finished.text));
  }
  finished.text.reset();
  ended_ = true;
  auto rest = std::make_shared<Finished>(std::move(finished));
  sessions_.end(name_, std::move(session), [inner, rest](const std::string& error) {
    if (!error.empty()) rest->error = error;
    inner->on_finish(std::move(*rest));
  });
}

}  // namespace ssm::serve
