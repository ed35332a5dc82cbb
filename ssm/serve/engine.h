// Engine: a Scheduler on a thread of its own.
#pragma once

#include <thread>

#include "ssm/runtime/scheduler.h"

namespace ssm::serve {

class Engine {
 public:
  Engine(const LoadedModel& model, const SchedulerOptions& options)
      : scheduler_(model, options), thread_([this](const std::stop_token& stop) { run(stop); }) {}

  // As of Scheduler; by any thread.
  std::vector<uint64_t> submit(std::vector<Request> requests) {
    return scheduler_.submit(std::move(requests));
  }
  void cancel(std::span<const uint64_t> ids) {
    for (const uint64_t id : ids) scheduler_.cancel(id);
  }
  void stop() {
    thread_.request_stop();
    if (thread_.joinable()) thread_.join();
  }
  SchedulerStats stats() const { return scheduler_.stats(); }

 private:
  void run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      scheduler_.wait(stop);
      while (!stop.stop_requested() && scheduler_.step()) {
      }
    }
  }

  Scheduler scheduler_;
  std::jthread thread_;
};

}  // namespace ssm::serve
