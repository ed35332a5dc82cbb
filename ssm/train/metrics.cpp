#include "ssm/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <fstream>
#include <system_error>

#include "ssm/core/atomic_file.h"
#include "ssm/core/error.h"
#include "ssm/io/bytes.h"

namespace ssm::train {
namespace {

using nlohmann::ordered_json;

std::string dumped(const ordered_json& object) {
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

// The lines of a log that belong to steps up to `step`; the last one is dropped where it is no whole one.
std::string kept_lines(const std::filesystem::path& path, int64_t step) {
  std::ifstream in(path, std::ios::binary);
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const auto object = ordered_json::parse(line, nullptr, false);
    if (!object.is_object() || object.contains("run")) continue;
    const auto it = object.find("step");
    if (it != object.end() && it->is_number_integer() && it->get<int64_t>() <= step) kept += line + "\n";
  }
  return kept;
}

}  // namespace

ordered_json Metrics::to_json() const {
  ordered_json object{{"step", step}};
  const auto put = [&](const char* name, const auto& value) {
    if (value) object[name] = *value;
  };
  const auto put_finite = [&](const char* name, const std::optional<double>& value) {
    if (value) object[name] = std::isfinite(*value) ? ordered_json(*value) : ordered_json();
  };
  put_finite("loss", loss);
  put_finite("validation_loss", validation_loss);
  put_finite("lr", lr);
  put_finite("grad_norm", grad_norm);
  put("tokens", tokens);
  put_finite("tokens_per_second", tokens_per_second);
  put_finite("seconds", seconds);
  put("memory", memory);
  return object;
}

MetricsLog::MetricsLog(const std::filesystem::path& path, const ordered_json& configuration, int64_t step)
    : name_(printable(path.string())) {
  AtomicFile file(path);
  file.write(dumped({{"run", configuration}}));
  if (step > 0) file.write(kept_lines(path, step));
  file.commit();
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  SSM_CHECK(fd_ >= 0, "{}: cannot open: {}", name_, std::generic_category().message(errno));
}

MetricsLog::~MetricsLog() { ::close(fd_); }

void MetricsLog::write(const Metrics& metrics) { write_line(metrics.to_json()); }

void MetricsLog::write_line(const ordered_json& object) {
  const std::string line = dumped(object);
  const ssize_t n = ::write(fd_, line.data(), line.size());
  SSM_CHECK(n == std::ssize(line), "{}: cannot write: {}", name_,
            n < 0 ? std::generic_category().message(errno) : "no space");
}

std::string show_duration(double seconds) {
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

std::string show_count(double n) {
  if (n < 999.5) return fmt::format("{:.0f}", n);
  const char* unit = "k";
  double value = n / 1e3;
  for (const char* next : {"M", "G", "T"}) {
    if (value < 999.5) break;
    value /= 1e3;
    unit = next;
  }
  return fmt::format("{:.{}f}{}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, unit);
}

std::string progress_line(const Metrics& metrics, int64_t steps, std::optional<double> seconds_left) {
  std::string line = fmt::format("step {}/{}", metrics.step, steps);
  if (metrics.loss) line += fmt::format("  loss {:.4f}", *metrics.loss);
  if (metrics.validation_loss) line += fmt::format("  validation {:.4f}", *metrics.validation_loss);
  if (metrics.tokens_per_second) line += fmt::format("  {} tokens/s", show_count(*metrics.tokens_per_second));
  if (seconds_left) line += fmt::format("  ETA {}", show_duration(*seconds_left));
  if (metrics.memory) line += fmt::format("  {:.2f} GiB", static_cast<double>(*metrics.memory) / 0x1p30);
  return line;
}

int64_t resident_memory() {
  std::ifstream statm("/proc/self/statm");
  int64_t size = 0, resident = 0;
  if (!(statm >> size >> resident)) return 0;
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace ssm::train
