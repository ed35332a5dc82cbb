// What the server counts, in Prometheus' text format. By the server's thread.
#pragma once

#include <array>
#include <map>
#include <string>

#include "ssm/runtime/scheduler.h"

namespace ssm::serve {

// Seconds, in buckets from 1 ms on, each twice as wide as the one before.
class Histogram {
 public:
  void add(double seconds, int64_t times = 1);
  std::string text(const std::string& name, const std::string& help) const;

 private:
  static constexpr size_t kBuckets = 18;
  std::array<int64_t, kBuckets + 1> counts_{};
  double sum_ = 0;
};

struct Metrics {
  std::map<std::pair<std::string, int>, int64_t> responses;  // by path and status
  int64_t connections = 0, slow_readers = 0, vanished_clients = 0;
  Histogram first_token, between_tokens, request;

  std::string text(const SchedulerStats& stats, const SchedulerOptions& options) const;
};

}  // namespace ssm::serve
