#include "ssm/serve/reply.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "ssm/core/error.h"

namespace ssm::serve {

namespace asio = boost::asio;

namespace {

// With many streams the interval grows, so that events take no more than a few percent of a CPU.
constexpr std::chrono::microseconds kIntervalEach{800};
constexpr std::chrono::milliseconds kMostOfMany{50};

}  // namespace

Outbox::Outbox(Clock::duration interval) : interval_(interval) {
  SSM_CHECK(::pipe2(bell_.data(), O_NONBLOCK | O_CLOEXEC) == 0, "cannot open a pipe: {}",
            std::strerror(errno));
}

Outbox::~Outbox() {
  for (const int end : bell_) ::close(end);
}

void Outbox::after_step() {
  if (waiting_.empty()) return;
  Clock::duration interval = interval_;
  if (interval > Clock::duration::zero()) {
    const Clock::duration many = kIntervalEach * static_cast<int64_t>(waiting_.size());
    interval = std::max(interval, std::min<Clock::duration>(many, kMostOfMany));
  }
  const auto now = Clock::now();
  if (now - last_ < interval) return;
  last_ = now;
  tell(std::exchange(waiting_, {}));
}

void Outbox::tell(std::shared_ptr<Reply> reply) {
  std::vector<std::shared_ptr<Reply>> one;
  one.push_back(std::move(reply));
  tell(std::move(one));
}

void Outbox::tell(std::vector<std::shared_ptr<Reply>> replies) {
  {
    const std::lock_guard lock(mutex_);
    const bool rung = !told_.empty();
    std::ranges::move(replies, std::back_inserter(told_));
    if (rung) return;
  }
  [[maybe_unused]] const ssize_t written = ::write(bell_[1], "", 1);  // a full pipe has been rung
  sched_yield();
}

asio::awaitable<void> Outbox::deliver() {
  asio::posix::stream_descriptor bell(co_await asio::this_coro::executor, ::dup(bell_[0]));
  for (;;) {
    co_await bell.async_wait(asio::posix::descriptor_base::wait_read, asio::use_awaitable);
    std::array<char, 16> rings;
    while (::read(bell_[0], rings.data(), rings.size()) > 0) {
    }
    std::vector<std::shared_ptr<Reply>> told;
    {
      const std::lock_guard lock(mutex_);
      told = std::exchange(told_, {});
    }
    for (const std::shared_ptr<Reply>& reply : told) reply->timer_.cancel();
  }
}

void Outbox::clear() {
  waiting_.clear();
  told_.clear();
}

class Reply::Part : public Listener {
 public:
  Part(std::shared_ptr<Reply> reply, size_t request) : reply_(std::move(reply)), request_(request) {}

  void on_start(int64_t cached_tokens) override {
    ReplyEvent event = make(ReplyEvent::Kind::start);
    event.cached = cached_tokens;
    reply_->push(std::move(event));
  }
  void on_prompt_score(int64_t, const TokenScores& scores) override { prompt_scores_.push_back(scores); }
  bool on_token(const TokenEvent& token) override {
    push_prompt();
    ReplyEvent event = make(ReplyEvent::Kind::token);
    event.choice = token.choice;
    event.id = token.id;
    event.text = token.text;
    if (token.scores) event.scores = *token.scores;
    return reply_->push(std::move(event));
  }
  void on_end(size_t choice, StopReason reason) override {
    push_prompt();
    ReplyEvent event = make(ReplyEvent::Kind::end);
    event.choice = choice;
    event.reason = reason;
    reply_->push(std::move(event));
  }
  void on_finish(Finished finished) override {
    push_prompt();
    ReplyEvent event = make(ReplyEvent::Kind::finish);
    event.finished = std::move(finished);
    reply_->push(std::move(event));
  }

 private:
  ReplyEvent make(ReplyEvent::Kind kind) const {
    ReplyEvent event;
    event.kind = kind;
    event.request = request_;
    return event;
  }
  void push_prompt() {
    if (prompt_scores_.empty()) return;
    ReplyEvent event = make(ReplyEvent::Kind::prompt);
    event.prompt_scores = std::exchange(prompt_scores_, {});
    reply_->push(std::move(event));
  }

  std::shared_ptr<Reply> reply_;
  size_t request_;
  std::vector<TokenScores> prompt_scores_;
};

std::shared_ptr<Listener> Reply::listener(size_t request) {
  return std::make_shared<Part>(shared_from_this(), request);
}

// False: the text is to end.
bool Reply::push(ReplyEvent event) {
  if (closed_) return false;
  using Kind = ReplyEvent::Kind;
  const bool urgent =
      event.kind == Kind::finish || (event.kind == Kind::token && !std::exchange(begun_, true));
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    if (events_.size() >= max_events_ && event.kind == Kind::token) {
      overflowed_ = true;
      return false;
    }
    first = events_.empty();
    events_.push_back(std::move(event));
  }
  if (urgent) {
    outbox_.tell(shared_from_this());
  } else if (first) {
    outbox_.add(shared_from_this());
  }
  return true;
}

void Reply::close() {
  closed_ = true;
  timer_.cancel();
}

asio::awaitable<std::vector<ReplyEvent>> Reply::next(Clock::time_point deadline) {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (!events_.empty()) co_return std::exchange(events_, {});
    }
    if (closed_ || Clock::now() >= deadline) co_return std::vector<ReplyEvent>{};
    timer_.expires_at(deadline);
    co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

}  // namespace ssm::serve
