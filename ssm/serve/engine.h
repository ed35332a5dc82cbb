// Engine: a Scheduler on a thread of its own, which tells an Outbox what its steps brought.
#pragma once

#include <thread>

#include "ssm/runtime/scheduler.h"
#include "ssm/serve/reply.h"

namespace ssm::serve {

class Engine {
 public:
  Engine(const LoadedModel& model, const SchedulerOptions& options, Outbox::Clock::duration interval)
      : outbox_(interval),
        scheduler_(model, options),
        thread_([this](const std::stop_token& stop) { run(stop); }) {}

  // As of Scheduler; by any thread.
  std::vector<uint64_t> submit(std::vector<Request> requests) {
    return scheduler_.submit(std::move(requests));
  }
  void cancel(std::span<const uint64_t> ids) {
    for (const uint64_t id : ids) scheduler_.cancel(id);
  }
  // What still runs is cancelled: nothing of a reply is held afterwards.
  void stop() {
    thread_.request_stop();
    if (!thread_.joinable()) return;
    thread_.join();
    scheduler_.cancel_all();
    scheduler_.step();
    outbox_.clear();
  }
  Outbox& outbox() { return outbox_; }
  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  void run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      scheduler_.wait(stop);
      while (!stop.stop_requested() && scheduler_.step()) outbox_.after_step();
    }
  }

  Outbox outbox_;
  Scheduler scheduler_;
  std::jthread thread_;
};

}  // namespace ssm::serve
