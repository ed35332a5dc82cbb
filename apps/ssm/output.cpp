#include "apps/ssm/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "ssm/core/error.h"

namespace ssm::app {
namespace {

constexpr size_t kBufferBytes = 1 << 16;
constexpr double kProgressSeconds = 0.2;

template <class T>
std::string number_or_null(T x) {
  return std::isfinite(x) ? fmt::format("{}", x) : "null";
}

}  // namespace

void Output::write(std::string_view text) {
  buffer_.append(text);
  if (buffer_.size() >= kBufferBytes) flush();
}

void Output::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(STDOUT_FILENO, buffer_.data() + done, buffer_.size() - done);
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno == EPIPE) {
      throw BrokenPipe();
    } else if (errno != EINTR) {
      fail("standard output: {}", std::strerror(errno));
    }
  }
  buffer_.clear();
}

void note(std::string_view text) { fmt::print(stderr, "ssm: {}\n", text); }

Output& standard_output() {
  static Output output;
  return output;
}

void print_json(const nlohmann::ordered_json& object) {
  standard_output().write(object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  standard_output().write("\n");
}

std::string json_number(float x) { return number_or_null(x); }
std::string json_number(double x) { return number_or_null(x); }

nlohmann::ordered_json finite_or_null(double x) {
  return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json();
}

bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1; }
bool stdout_is_terminal() { return isatty(STDOUT_FILENO) == 1; }
bool stderr_is_terminal() { return isatty(STDERR_FILENO) == 1; }

void Progress::show(std::string_view line) {
  const double now = seconds_now();
  if (!stderr_is_terminal() || now - last_ < kProgressSeconds) return;
  last_ = now;
  shown_ = true;
  fmt::print(stderr, "\r\033[K{}", line);
  std::fflush(stderr);
}

void Progress::show_share(std::string_view doing, int64_t done, int64_t all) {
  const double share = static_cast<double>(done) / static_cast<double>(std::max<int64_t>(all, 1));
  show(fmt::format("{}: {:.0f} %", doing, 100 * share));
}

void Progress::clear() {
  if (shown_) fmt::print(stderr, "\r\033[K");
  shown_ = false;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace ssm::app
