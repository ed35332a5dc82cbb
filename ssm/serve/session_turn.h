// SessionTurn: a text request that goes on from a session, and what becomes of the session.
//
// A turn that failed, or was given up before its first new token, leaves the session as it was; one that was
// given up later leaves what was written.
#pragma once

#include <memory>
#include <optional>

#include "ssm/runtime/scheduler.h"
#include "ssm/serve/options.h"
#include "ssm/serve/session_file.h"

namespace ssm::serve {

class Sessions;

class SessionTurn : public std::enable_shared_from_this<SessionTurn> {
 public:
  SessionTurn(Sessions& sessions, const LoadedModel& model, std::string name, Session before);
  ~SessionTurn();  // ends the turn if nothing else has
  SessionTurn(const SessionTurn&) = delete;
  SessionTurn& operator=(const SessionTurn&) = delete;

  const std::string& name() const { return name_; }
  bool is_new() const { return before_.about.kind == SessionKind::empty; }

  // Make a request of what is new: token ids, or messages. Throw ApiError (400) where a session is of the
  // other kind, has no room left, or nothing would be there to read; Error where the template refuses.
  void write(Request& request, std::vector<int32_t> ids);
  void say(Request& request, const nlohmann::ordered_json& messages, const ChatFormat& format);

  // Tells `inner` what it hears, and the end only once the session is kept.
  std::shared_ptr<Listener> listener(std::shared_ptr<Listener> inner);

 private:
  class Part;
  struct Answer {
    std::vector<int32_t> ids;
    std::string shown;
    StopReason reason = StopReason::length;
  };

  void check_kind(SessionKind kind, const char* field) const;
  void go_on(Request& request, std::vector<int32_t> ids) const;
  std::shared_ptr<const Session> after(const Answer& answer, TextCopy text);
  void end(const Answer& answer, Finished finished, const std::shared_ptr<Listener>& inner);

  Sessions& sessions_;
  const LoadedModel& model_;
  const std::string name_;
  const Session before_;
  SessionKind kind_ = SessionKind::empty;
  std::string prompt_text_;                   // of a completion
  std::optional<text::ChatHistory> history_;  // of a chat
  bool ended_ = false;
};

}  // namespace ssm::serve
