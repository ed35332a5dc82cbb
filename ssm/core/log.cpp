#include "ssm/core/log.h"

#include <mutex>
#include <utility>

namespace ssm {
namespace {
std::mutex mutex;
std::function<void(LogLevel, std::string_view)> current;
}  // namespace

void set_log_handler(std::function<void(LogLevel, std::string_view)> handler) {
  std::lock_guard lock(mutex);
  current = std::move(handler);
}

void log(LogLevel level, std::string_view message) {
  std::lock_guard lock(mutex);
  if (current) current(level, message);
}

}  // namespace ssm
