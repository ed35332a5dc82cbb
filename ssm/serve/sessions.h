// Sessions: texts with a name that go on where they ended, with only what is new to be read. A session is a
// state, of fixed size but for what attention keeps, and a transcript. With a folder each is a file there,
// written whole before its turn's answer has ended, and states beyond a budget of memory lie there alone. By
// any thread.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <map>
#include <mutex>

#include "ssm/serve/http.h"
#include "ssm/serve/options.h"
#include "ssm/serve/session_file.h"
#include "ssm/serve/session_turn.h"

namespace ssm::serve {

// Throws ApiError (400) naming `field` for what is no name of a session.
void check_session_name(const std::string& name, const std::string& field);

class Sessions {
 public:
  // Reads what is in the folder of `options`; files that are damaged are told of, and left alone.
  Sessions(const LoadedModel& model, const ServerOptions& options);
  ~Sessions();
  void stop();  // once nothing is written any more: what was written is on disk then

  // All throw ApiError: 404 unknown, 409 busy or already there, 429 no room. In the API's JSON.
  nlohmann::ordered_json create(const std::string& name, const std::string& from);  // `from` may be empty
  nlohmann::ordered_json list() const;
  nlohmann::ordered_json get(const std::string& name);
  void remove(const std::string& name);

  // Makes the session busy, and the session itself where there is none.
  std::shared_ptr<SessionTurn> begin(const std::string& name);

  // For SessionTurn. `after`: null where nothing has changed. Once the session is kept and no longer busy,
  // `then` hears what went wrong, or nothing.
  void end(const std::string& name, std::shared_ptr<const Session> after,
           std::function<void(const std::string&)> then);

 private:
  struct Entry {
    SessionNote about;
    std::shared_ptr<const TextCopy> text;  // null: empty, or on disk alone
    int64_t tokens = 0;
    uint64_t used = 0;
    bool busy = false;
    bool kept = true;  // false: made by a turn that has not ended yet
  };
  using Entries = std::map<std::string, Entry>;

  void open_folder();
  std::filesystem::path file_of(const std::string& name) const;
  Entries::iterator known(const std::string& name);
  Entry& make(const std::string& name);
  Session whole(const std::string& name, const Entry& entry) const;
  void put(Entry& entry, const Session& session);
  void make_room();
  size_t bytes_of(const std::shared_ptr<const TextCopy>& text) const;
  size_t bytes_of_all() const;
  void finish_turn(const std::string& name, const Session& after);
  void release(const std::string& name);
  static nlohmann::ordered_json about(const std::string& name, const Entry& entry);

  const LoadedModel& model_;
  const ServerOptions& options_;
  const StateLayout layout_;
  const size_t bytes_each_;  // at least
  int lock_ = -1;            // of the folder: two servers must not share one

  mutable std::mutex mutex_;  // of what follows
  Entries entries_;
  uint64_t clock_ = 0;
  boost::asio::thread_pool writer_{1};
};

}  // namespace ssm::serve
