// Reply: what the engine tells about the requests of one HTTP request, brought from its thread to the
// server's. It holds a bounded number of events: a client that takes them too slowly ends its requests.
//
// Outbox: the replies whose events nobody was told of yet. To wake the server's thread, and each client, for
// every token costs as much as a step of a small model, so tokens are handed over some milliseconds' worth at
// a time, more where many listen; a text's first token and its end go at once.
//
// The server's thread must run at that moment, though the engine's threads keep all CPUs busy. So what is
// told is announced through a pipe, without a lock held: a pipe wakes its reader on the writer's CPU, which
// the writer then yields. asio::post wakes it with its own lock held, and an eventfd beside a thread that may
// go on: either way the reader may wait for the end of a scheduler's slice, a millisecond.
#pragma once

#include <array>
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

class Outbox {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Outbox(Clock::duration interval);  // throws Error where the process may open no more files
  ~Outbox();
  Outbox(const Outbox&) = delete;

  // By the engine's thread.
  void add(std::shared_ptr<Reply> reply) { waiting_.push_back(std::move(reply)); }
  void after_step();  // tells, where the last time is long enough ago
  void tell(std::shared_ptr<Reply> reply);

  boost::asio::awaitable<void> deliver();  // wakes the replies told of, on their executor, without an end

  void clear();  // once nothing is delivered any more

 private:
  void tell(std::vector<std::shared_ptr<Reply>> replies);

  const Clock::duration interval_;
  Clock::time_point last_{};
  std::vector<std::shared_ptr<Reply>> waiting_;
  std::array<int, 2> bell_{};  // a pipe
  std::mutex mutex_;           // of told_
  std::vector<std::shared_ptr<Reply>> told_;
};

class Reply : public std::enable_shared_from_this<Reply> {
 public:
  using Clock = std::chrono::steady_clock;

  Reply(const boost::asio::any_io_executor& executor, Outbox& outbox, size_t max_events)
      : timer_(executor), outbox_(outbox), max_events_(max_events) {}

  std::shared_ptr<Listener> listener(size_t request);

  // Events in order; none at the deadline, or once the reply is closed. By the executor's thread.
  boost::asio::awaitable<std::vector<ReplyEvent>> next(Clock::time_point deadline);

  void close();  // nobody listens any more: texts end at their next token; by the executor's thread
  bool closed() const { return closed_; }
  bool overflowed() const { return overflowed_; }

 private:
  friend class Outbox;
  class Part;
  bool push(ReplyEvent event);  // by the engine's thread

  boost::asio::steady_timer timer_;
  Outbox& outbox_;
  const size_t max_events_;
  bool begun_ = false;  // a token was there
  std::mutex mutex_;    // of events_
  std::vector<ReplyEvent> events_;
  std::atomic<bool> closed_ = false, overflowed_ = false;
};

}  // namespace ssm::serve
