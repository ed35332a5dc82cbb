#include "ssm/serve/session_file.h"

#include "ssm/io/json.h"

namespace ssm::serve {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kField = "session";
constexpr const char* kEmptyFormat = "ssm-empty-session";
constexpr int kVersion = 1;
constexpr SessionKind kKinds[] = {SessionKind::empty, SessionKind::completion, SessionKind::chat};

// Bytes that are no UTF-8 become U+FFFD.
std::string text_of(const ordered_json& about) {
  return about.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// The fields of the metadata's JSON; every fault is named.
class Fields {
 public:
  Fields(const json& object, const std::string& file) : object_(object), file_(file) {}

  const json& get(const char* name, json::value_t type) const {
    const auto it = object_.find(name);
    const bool fits =
        it != object_.end() && (it->type() == type || (type == json::value_t::number_integer &&
                                                       it->type() == json::value_t::number_unsigned));
    SSM_CHECK(fits, "{}: metadata field \"{}\": {} is missing or of another type", file_, kField, name);
    return *it;
  }
  std::string text(const char* name) const { return get(name, json::value_t::string).get<std::string>(); }
  int64_t count(const char* name) const {
    const json& value = get(name, json::value_t::number_integer);
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{1} << 62;
    SSM_CHECK(fits, "{}: metadata field \"{}\": {} is {}, which is no count", file_, kField, name,
              io::shown(value));
    return value.get<int64_t>();
  }

 private:
  const json& object_;
  const std::string& file_;
};

SessionKind kind_of(const std::string& name, const std::string& file) {
  for (const SessionKind kind : kKinds) {
    if (name == name_of(kind)) return kind;
  }
  fail("{}: metadata field \"{}\": kind is none of empty, completion and chat", file, kField);
}

ordered_json messages_of(const json& list, const std::string& file) {
  ordered_json messages = ordered_json::array();
  for (const json& message : list) {
    const bool fits = message.is_object() && message.size() == 2 && message.contains("role") &&
                      message["role"].is_string() && message.contains("content") &&
                      message["content"].is_string();
    SSM_CHECK(fits, "{}: metadata field \"{}\": message {} is no role and content", file, kField,
              messages.size());
    messages.push_back({{"role", message["role"]}, {"content", message["content"]}});
  }
  return messages;
}

}  // namespace

std::string_view name_of(SessionKind kind) {
  switch (kind) {
    case SessionKind::empty:
      return "empty";
    case SessionKind::completion:
      return "completion";
    case SessionKind::chat:
      return "chat";
  }
  return "";
}

void save_session(const std::filesystem::path& path, const LoadedModel& model, const StateLayout& layout,
                  const Session& session) {
  const SessionNote& s = session.about;
  ordered_json about{{"version", kVersion},  {"kind", name_of(s.kind)}, {"created", s.created},
                     {"updated", s.updated}, {"turns", s.turns},        {"ended", s.ended}};
  if (s.kind == SessionKind::completion) about["text"] = s.text;
  if (s.kind == SessionKind::chat) {
    about["messages"] = s.chat.messages;
    about["prompt"] = s.chat.prompt;
    about["read"] = s.chat.read;
  }
  if (session.text) {
    save_text(path, model, layout, *session.text, {{kField, text_of(about)}});
  } else {
    io::write_safetensors(path, std::span<const io::NamedTensor>(),
                          {{"format", kEmptyFormat}, {kField, text_of(about)}});
  }
}

SessionNote read_session_note(const io::SafetensorsFile& source, const std::string& file) {
  const auto field = source.metadata().find(kField);
  SSM_CHECK(field != source.metadata().end(), "{}: not a session: metadata field \"{}\" is missing", file,
            kField);
  const json about = io::parse_json(field->second, fmt::format("{}: metadata field \"{}\"", file, kField));
  SSM_CHECK(about.is_object(), "{}: metadata field \"{}\" is no JSON object", file, kField);
  const Fields fields(about, file);
  SSM_CHECK(fields.count("version") == kVersion, "{}: a session of version {}, this program reads version {}",
            file, fields.count("version"), kVersion);
  SessionNote note;
  note.kind = kind_of(fields.text("kind"), file);
  note.created = fields.count("created");
  note.updated = fields.count("updated");
  note.turns = fields.count("turns");
  note.ended = fields.get("ended", json::value_t::boolean).get<bool>();
  if (note.kind == SessionKind::completion) note.text = fields.text("text");
  if (note.kind == SessionKind::chat) {
    note.chat.messages = messages_of(fields.get("messages", json::value_t::array), file);
    SSM_CHECK(!note.chat.messages.empty() && note.chat.messages.back()["role"] == "assistant",
              "{}: metadata field \"{}\": messages do not end with the assistant's", file, kField);
    note.chat.prompt = fields.text("prompt");
    note.chat.read = fields.text("read");
  }
  return note;
}

Session read_session(const io::SafetensorsFile& source, const std::string& file, const LoadedModel& model,
                     const StateLayout& layout) {
  Session session{read_session_note(source, file), nullptr};
  if (session.about.kind == SessionKind::empty) {
    SSM_CHECK(source.names().empty(), "{}: an empty session with {} tensors", file, source.names().size());
    return session;
  }
  session.text = std::make_shared<const TextCopy>(read_text(source, file, model, layout));
  return session;
}

}  // namespace ssm::serve
