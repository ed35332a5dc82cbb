// Reply: what the engine tells about the requests of one HTTP request, brought from its thread to the
// server's. It holds a bounded number of events: a client that takes them too slowly ends its requests.
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

class Reply : public std::enable_shared_from_this<Reply> {
 public:
  using Clock = std::chrono::steady_clock;

  Reply(boost::asio::any_io_executor executor, size_t max_events)
      : executor_(executor), timer_(executor), max_events_(max_events) {}

  std::shared_ptr<Listener> listener(size_t request);

  // Events in order; none at the deadline, or once the reply is closed. By the executor's thread.
  boost::asio::awaitable<std::vector<ReplyEvent>> next(Clock::time_point deadline);

  void close();  // nobody listens any more: texts end at their next token
  bool closed() const { return closed_; }
  bool overflowed() const { return overflowed_; }

 private:
  class Part;
  bool push(ReplyEvent event);  // by the engine's thread
  void wake();

  boost::asio::any_io_executor executor_;
  boost::asio::steady_timer timer_;
  const size_t max_events_;
  std::mutex mutex_;  // of events_
  std::vector<ReplyEvent> events_;
  std::atomic<bool> closed_ = false, overflowed_ = false;
};

}  // namespace ssm::serve
