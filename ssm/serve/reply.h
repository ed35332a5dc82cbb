// Reply: what the engine tells about the requests of one HTTP request, brought from its thread to the
// server's. It holds a bounded number of events: a client that takes them too slowly ends its requests.
//
// Outbox: the replies whose events nobody was told of yet. To wake the server's thread, and each client, for
// every token costs as much as a step of a small model, so tokens are handed over some milliseconds' worth at
// a time, more where many listen; a text's first token and its end go at once.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <mutex>

#include "ssm/runtime/scheduler.h"

namespace ssm::serve {

struct ReplyEvent {
  enum class Kind { start, prompt, token, end, finish } kind = Kind::start;
  size_t request = 0, choice = 0;
  int64_t cached = 0;                      // start
  std::vector<TokenScores> prompt_scores;  // prompt: one a token
  int32_t id = -1;                         // token
  std::string text;                        // token
  std::optional<TokenScores> scores;       // token
  StopReason reason = StopReason::length;  // end
  Finished finished;                       // finish
};

class Reply;

// By the engine's thread.
class Outbox {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Outbox(Clock::duration interval) : interval_(interval) {}
  void add(std::shared_ptr<Reply> reply) { replies_.push_back(std::move(reply)); }
  void after_step();  // tells, where the last time is long enough ago
  void clear() { replies_.clear(); }

 private:
  const Clock::duration interval_;
  Clock::time_point told_{};
  std::vector<std::shared_ptr<Reply>> replies_;
};

class Reply : public std::enable_shared_from_this<Reply> {
 public:
  using Clock = std::chrono::steady_clock;

  Reply(boost::asio::any_io_executor executor, Outbox& outbox, size_t max_events)
      : executor_(executor), timer_(executor), outbox_(outbox), max_events_(max_events) {}

  std::shared_ptr<Listener> listener(size_t request);

  // Events in order; none at the deadline, or once the reply is closed. By the executor's thread.
  boost::asio::awaitable<std::vector<ReplyEvent>> next(Clock::time_point deadline);

  void close();  // nobody listens any more: texts end at their next token
  bool closed() const { return closed_; }
  bool overflowed() const { return overflowed_; }

 private:
  friend class Outbox;
  class Part;
  bool push(ReplyEvent event);  // by the engine's thread
  void wake();

  boost::asio::any_io_executor executor_;
  boost::asio::steady_timer timer_;
  Outbox& outbox_;
  const size_t max_events_;
  bool begun_ = false;  // a token was there
  std::mutex mutex_;    // of events_
  std::vector<ReplyEvent> events_;
  std::atomic<bool> closed_ = false, overflowed_ = false;
};

}  // namespace ssm::serve
