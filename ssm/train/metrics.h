// What a training run says about itself: a file of JSON lines, a file of TensorBoard events, a line for a
// terminal. Everything else (the report) is made from the JSON lines.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace ssm::train {

// After a step. What was not measured stays absent.
struct Metrics {
  int64_t step = 0;  // steps done
  std::optional<double> loss, lr, grad_norm, validation_loss;
  std::optional<int64_t> tokens;            // inputs read since the first step
  std::optional<double> tokens_per_second;  // lately
  std::optional<double> seconds;            // of training since the first step
  std::optional<int64_t> memory;            // bytes: of a card where one computes, else of the process

  nlohmann::ordered_json to_json() const;  // what is not finite is null
};

// A file that only grows, a line a write, so that a kill leaves whole lines but perhaps for the last. Its
// first line is {"run": configuration}, every other one Metrics.
class MetricsLog {
 public:
  // A new run (step 0) begins the file anew; a resumed one drops what stands there of steps after `step` and
  // goes on. Throws Error naming the path.
  MetricsLog(const std::filesystem::path& path, const nlohmann::ordered_json& configuration,
             int64_t step = 0);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void write(const Metrics& metrics);

 private:
  void write_line(const nlohmann::ordered_json& object);

  std::string name_;
  int fd_ = -1;
};

// TensorBoard's event file in a folder of the run's: TFRecords of Event messages, scalars only (train/loss,
// train/lr, train/grad_norm, train/tokens_per_second, validation/loss). A resumed run writes another file
// that tells TensorBoard to forget what came after `step`.
class EventLog {
 public:
  explicit EventLog(const std::filesystem::path& folder, int64_t step = 0);
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  void write(const Metrics& metrics);
  const std::filesystem::path& path() const { return path_; }

 private:
  void write_event(std::string_view fields, int64_t step);

  std::filesystem::path path_;
  int fd_ = -1;
};

// "step 120/1000  loss 3.214  12.3k tokens/s  ETA 3m12s  1.20 GiB": what fits into a line of a terminal.
// `seconds_left` as the caller estimates it.
std::string progress_line(const Metrics& metrics, int64_t steps, std::optional<double> seconds_left);
std::string show_duration(double seconds);  // "42s", "3m12s", "5h07m", "2d03h"
std::string show_count(double n);           // "950", "12.3k", "4.56M"

int64_t resident_memory();  // bytes of this process, 0 where the system does not say

}  // namespace ssm::train
