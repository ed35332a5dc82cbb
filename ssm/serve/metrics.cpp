#include "ssm/serve/metrics.h"

#include <fmt/format.h>

namespace ssm::serve {
namespace {

constexpr double kFirstBound = 0.001;

std::string number(const char* name, const char* type, const char* help, double value) {
  return fmt::format("# HELP ssm_{0} {1}\n# TYPE ssm_{0} {2}\nssm_{0} {3}\n", name, help, type, value);
}

}  // namespace

void Histogram::add(double seconds, int64_t times) {
  size_t bucket = 0;
  for (double bound = kFirstBound; bucket < kBuckets && seconds > bound; bound *= 2) ++bucket;
  counts_[bucket] += times;
  sum_ += seconds * static_cast<double>(times);
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string text = fmt::format("# HELP ssm_{0} {1}\n# TYPE ssm_{0} histogram\n", name, help);
  int64_t count = 0;
  double bound = kFirstBound;
  for (size_t i = 0; i < kBuckets; ++i, bound *= 2) {
    count += counts_[i];
    text += fmt::format("ssm_{}_bucket{{le=\"{}\"}} {}\n", name, bound, count);
  }
  count += counts_[kBuckets];
  return text + fmt::format("ssm_{0}_bucket{{le=\"+Inf\"}} {1}\nssm_{0}_sum {2}\nssm_{0}_count {1}\n", name,
                            count, sum_);
}

std::string Metrics::text(const SchedulerStats& s, const SchedulerOptions& options) const {
  const auto d = [](auto x) { return static_cast<double>(x); };
  std::string text =
      "# HELP ssm_responses_total Responses by path and status\n# TYPE ssm_responses_total counter\n";
  for (const auto& [key, count] : responses) {
    text +=
        fmt::format("ssm_responses_total{{path=\"{}\",status=\"{}\"}} {}\n", key.first, key.second, count);
  }
  text += number("connections", "gauge", "Open connections", d(connections));
  text += number("sequences_running", "gauge", "Texts that are being read or written", d(s.running));
  text += number("sequences_waiting", "gauge", "Texts that wait for a slot", d(s.waiting));
  text += number("sequence_slots", "gauge", "Texts at the same time, at most", d(options.slots));
  text += number("requests_total", "counter", "Prompts taken", d(s.requests));
  text += number("steps_total", "counter", "Steps of the model", d(s.steps));
  text += number("prompt_tokens_total", "counter", "Tokens of prompts", d(s.prompt_tokens));
  text += number("cached_tokens_total", "counter", "Tokens of prompts that were known already",
                 d(s.cached_tokens));
  text += number("new_tokens_total", "counter", "Tokens written", d(s.new_tokens));
  text += number("prefix_cache_hits_total", "counter", "Prompts with a known beginning", d(s.cache_hits));
  text += number("prefix_cache_entries", "gauge", "States in the prefix cache", d(s.cache_entries));
  text += number("prefix_cache_bytes", "gauge", "Memory of the prefix cache", d(s.cache_bytes));
  text += number("prefix_cache_budget_bytes", "gauge", "Memory it may take", d(options.cache_bytes));
  text += number("slow_readers_total", "counter", "Clients that took their text too slowly", d(slow_readers));
  text += number("vanished_clients_total", "counter", "Clients that closed before their answer",
                 d(vanished_clients));
  text += first_token.text("first_token_seconds", "From a request to its first token");
  text +=
      between_tokens.text("between_tokens_seconds",
                          "From one token of an answer to the next, on average where several came together");
  text += request.text("request_seconds", "From a text request to the end of its answer");
  return text;
}

}  // namespace ssm::serve
