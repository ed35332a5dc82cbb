#include "ssm/serve/sessions.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <random>

#include "ssm/core/atomic_file.h"
#include "ssm/core/clock.h"
#include "ssm/core/plain_name.h"

namespace ssm::serve {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr const char* kExtension = ".safetensors";
constexpr size_t kLongestName = 64;

std::string random_name() {
  static thread_local std::mt19937_64 source{std::random_device{}()};
  return fmt::format("session-{:016x}", source());
}

StateLayout layout_of(const LoadedModel& model) {
  return state_layout(StatePool(*model.model, 1, model.state));
}

int64_t tokens_of(const std::shared_ptr<const TextCopy>& text) { return text ? text->note.tokens : 0; }

}  // namespace

void check_session_name(const std::string& name, const std::string& field) {
  if (is_plain_name(name, kLongestName)) return;
  throw ApiError(400,
                 fmt::format("{} is no name: 1 to {} letters, digits, '.', '_' and '-', not beginning with "
                             "'.' or '-'",
                             field, kLongestName),
                 field);
}

Sessions::Sessions(const LoadedModel& model, const ServerOptions& options)
    : model_(model), options_(options), layout_(layout_of(model)), bytes_each_(ssm::bytes_of(layout_, 0)) {
  if (!options_.session_dir.empty()) open_folder();
}

Sessions::~Sessions() {
  stop();
  if (lock_ >= 0) ::close(lock_);
}

void Sessions::stop() { writer_.join(); }

void Sessions::open_folder() {
  const fs::path& folder = options_.session_dir;
  std::error_code error;
  if (fs::create_directories(folder, error)) {
    fs::permissions(folder, fs::perms::owner_all, error);  // what people say is theirs
  }
  SSM_CHECK(fs::is_directory(folder, error), "{}: cannot make this folder for sessions", folder.string());
  lock_ = ::open((folder / ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  SSM_CHECK(lock_ >= 0, "{}: cannot write here", folder.string());
  SSM_CHECK(::flock(lock_, LOCK_EX | LOCK_NB) == 0, "{}: another server keeps its sessions here",
            folder.string());
  for (const fs::directory_entry& file : fs::directory_iterator(folder)) {
    const fs::path& path = file.path();
    if (path.filename().string().find(std::string(kExtension) + ".tmp-") != std::string::npos) {
      fs::remove(path, error);  // of a server that was killed while it wrote
      continue;
    }
    if (path.extension() != kExtension || !is_plain_name(path.stem().string(), kLongestName)) continue;
    try {
      // Read whole, so that a damaged one is told of now; its state stays on disk until it is asked for.
      const Session session = read_session(*io::SafetensorsFile::open(path), path.string(), model_, layout_);
      Entry& entry = entries_[path.stem().string()];
      entry.about = session.about;
      entry.tokens = tokens_of(session.text);
    } catch (const Error& e) {
      if (options_.warn) options_.warn(e.what());
    }
  }
}

fs::path Sessions::file_of(const std::string& name) const {
  return options_.session_dir / (name + kExtension);
}

Sessions::Entries::iterator Sessions::known(const std::string& name) {
  const auto at = entries_.find(name);
  if (at == entries_.end() || !at->second.kept)
    throw ApiError(404, fmt::format("there is no session {}", name));
  return at;
}

// A busy entry of a new session.
Sessions::Entry& Sessions::make(const std::string& name) {
  if (std::ssize(entries_) >= options_.max_sessions) {
    throw ApiError(429, fmt::format("{} sessions are kept, no more are taken: delete one", entries_.size()));
  }
  const bool in_memory = options_.session_dir.empty();
  if (in_memory && bytes_of_all() + bytes_each_ > options_.session_bytes) {
    throw ApiError(
        429, fmt::format("the states of {} sessions fill the memory for them: delete one", entries_.size()));
  }
  std::error_code error;
  if (!in_memory && fs::exists(file_of(name), error)) {
    throw ApiError(409, fmt::format("the file of session {} is damaged, or of another model", name));
  }
  Entry& entry = entries_[name];
  entry.about.created = entry.about.updated = unix_seconds();
  entry.busy = true;
  return entry;
}

// With its state, from disk where it is there alone.
Session Sessions::whole(const std::string& name, const Entry& entry) const {
  if (entry.text || entry.about.kind == SessionKind::empty) return {entry.about, entry.text};
  const fs::path file = file_of(name);
  return read_session(*io::SafetensorsFile::open(file), file.string(), model_, layout_);
}

void Sessions::put(Entry& entry, const Session& session) {
  entry.about = session.about;
  entry.text = session.text;
  entry.tokens = tokens_of(session.text);
  entry.used = ++clock_;
}

// States that lie on disk too leave the memory, those first that were used longest ago.
void Sessions::make_room() {
  if (options_.session_dir.empty()) return;
  for (;;) {
    size_t held = 0;
    Entry* oldest = nullptr;
    for (auto& [name, entry] : entries_) {
      if (!entry.text) continue;
      held += bytes_of(entry.text);
      if (!entry.busy && (!oldest || entry.used < oldest->used)) oldest = &entry;
    }
    if (held <= options_.session_bytes || !oldest) return;
    oldest->text.reset();
  }
}

ordered_json Sessions::about(const std::string& name, const Entry& entry) {
  return {{"id", name},
          {"object", "session"},
          {"created", entry.about.created},
          {"updated", entry.about.updated},
          {"kind", name_of(entry.about.kind)},
          {"tokens", entry.tokens},
          {"turns", entry.about.turns},
          {"busy", entry.busy}};
}

ordered_json Sessions::create(const std::string& given, const std::string& from) {
  const std::lock_guard lock(mutex_);
  const std::string name = given.empty() ? random_name() : given;
  if (entries_.contains(name)) throw ApiError(409, fmt::format("session {} is there already", name), "name");
  Session session;
  if (!from.empty()) session = whole(from, known(from)->second);
  Entry& entry = make(name);
  try {
    session.about.created = entry.about.created;
    session.about.updated = entry.about.updated;
    if (!options_.session_dir.empty()) save_session(file_of(name), model_, layout_, session);
  } catch (...) {
    entries_.erase(name);
    throw;
  }
  put(entry, session);
  entry.busy = false;
  make_room();
  return about(name, entry);
}

ordered_json Sessions::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<int64_t, ordered_json>> sessions;
  for (const auto& [name, entry] : entries_) {
    if (entry.kept) sessions.emplace_back(-entry.about.updated, about(name, entry));
  }
  std::stable_sort(sessions.begin(), sessions.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  ordered_json data = ordered_json::array();
  for (auto& [updated, session] : sessions) data.push_back(std::move(session));
  return {{"object", "list"}, {"data", std::move(data)}};
}

ordered_json Sessions::get(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const Entry& entry = known(name)->second;
  ordered_json session = about(name, entry);
  if (entry.about.kind == SessionKind::completion) session["text"] = entry.about.text;
  if (entry.about.kind == SessionKind::chat) session["messages"] = entry.about.chat.messages;
  return session;
}

void Sessions::remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto at = known(name);
  if (at->second.busy) throw ApiError(409, fmt::format("session {} is being written", name));
  if (!options_.session_dir.empty()) {
    std::error_code error;
    fs::remove(file_of(name), error);
    SSM_CHECK(!error, "{}: cannot remove: {}", file_of(name).string(), error.message());
    sync_folder(options_.session_dir);
  }
  entries_.erase(at);
}

std::shared_ptr<SessionTurn> Sessions::begin(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto at = entries_.find(name);
  if (at == entries_.end()) {
    Entry& entry = make(name);
    entry.kept = false;
    return std::make_shared<SessionTurn>(*this, model_, name, Session{entry.about, nullptr});
  }
  Entry& entry = at->second;
  if (entry.busy) throw ApiError(409, fmt::format("session {} is being written", name), "session");
  auto turn = std::make_shared<SessionTurn>(*this, model_, name, whole(name, entry));
  entry.busy = true;
  return turn;
}

void Sessions::finish_turn(const std::string& name, const Session& after) {
  if (!options_.session_dir.empty()) save_session(file_of(name), model_, layout_, after);
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_.at(name);
  if (options_.session_dir.empty() && after.text && after.text->state.bytes() > bytes_each_) {
    SSM_CHECK(bytes_of_all() - bytes_of(entry.text) + bytes_of(after.text) <= options_.session_bytes,
              "the states of {} sessions fill the memory for them: delete one", entries_.size());
  }
  put(entry, after);
  entry.kept = true;
}

size_t Sessions::bytes_of(const std::shared_ptr<const TextCopy>& text) const {
  return std::max(bytes_each_, text ? text->state.bytes() : 0);
}

size_t Sessions::bytes_of_all() const {
  size_t bytes = 0;
  for (const auto& [name, entry] : entries_) bytes += bytes_of(entry.text);
  return bytes;
}

void Sessions::end(const std::string& name, std::shared_ptr<const Session> after,
                   std::function<void(const std::string&)> then) {
  if (!after) {
    release(name);
    if (then) then("");
    return;
  }
  boost::asio::post(writer_, [this, name, after = std::move(after), then = std::move(then)] {
    std::string error;
    try {
      finish_turn(name, *after);
    } catch (const std::exception& e) {
      error = fmt::format("the session could not be kept: {}", e.what());
    }
    release(name);
    then(error);
  });
}

void Sessions::release(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto at = entries_.find(name);
  at->second.busy = false;
  if (!at->second.kept) entries_.erase(at);
  make_room();
}

}  // namespace ssm::serve
