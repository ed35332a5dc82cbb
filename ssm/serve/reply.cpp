#include "ssm/serve/reply.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace ssm::serve {

namespace asio = boost::asio;

namespace {

// With many streams the interval grows, so that events take no more than a few percent of a CPU.
constexpr std::chrono::microseconds kIntervalEach{800};
constexpr std::chrono::milliseconds kMostOfMany{50};

}  // namespace

void Outbox::after_step() {
  if (replies_.empty()) return;
  Clock::duration interval = interval_;
  if (interval > Clock::duration::zero()) {
    const Clock::duration many = kIntervalEach * static_cast<int64_t>(replies_.size());
    interval = std::max(interval, std::min<Clock::duration>(many, kMostOfMany));
  }
  const auto now = Clock::now();
  if (now - told_ < interval) return;
  told_ = now;
  const asio::any_io_executor executor = replies_[0]->executor_;  // of all of them
  asio::post(executor, [replies = std::exchange(replies_, {})] {
    for (const std::shared_ptr<Reply>& reply : replies) reply->timer_.cancel();
  });
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
    wake();
  } else if (first) {
    outbox_.add(shared_from_this());
  }
  return true;
}

void Reply::wake() {
  asio::post(executor_, [self = shared_from_this()] { self->timer_.cancel(); });
}

void Reply::close() {
  closed_ = true;
  wake();
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
