// A session on disk: a state file (runtime/state_file.h) with what else is known of it in the metadata field
// "session". `ssm generate --load-state` takes it too. A session without a text has no tensors.
#pragma once

#include <filesystem>
#include <memory>

#include "ssm/runtime/state_file.h"
#include "ssm/text/chat_history.h"

namespace ssm::serve {

enum class SessionKind { empty, completion, chat };
std::string_view name_of(SessionKind kind);

// What is known of a session beside its state.
struct SessionNote {
  SessionKind kind = SessionKind::empty;
  int64_t created = 0, updated = 0;  // seconds since 1970
  int64_t turns = 0;
  bool ended = false;            // the last token is an end token, to be taken back when the text goes on
  std::string text;              // of a completion: its end, UTF-8
  text::ChatHistory::Past chat;  // of a chat
};

struct Session {
  SessionNote about;
  std::shared_ptr<const TextCopy> text;  // null: empty
};

void save_session(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout,
                  const Session& session);

// Throw Error naming the file and the field where it is damaged or belongs to another model.
Session read_session(const io::SafetensorsFile& source, const std::string& file, const LoadedModel& model,
                     const StateLayout& layout);
SessionNote read_session_note(const io::SafetensorsFile& source, const std::string& file);

}  // namespace ssm::serve
