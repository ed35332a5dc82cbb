// Standard output, buffered. What was not flushed yet is dropped on failure, so that a failing command prints
// nothing there.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ssm::app {

struct BrokenPipe {};  // the reader has closed its end

class Output {
 public:
  // Throw BrokenPipe, or Error when the bytes cannot be written.
  void write(std::string_view text);
  void flush();
  void discard() { buffer_.clear(); }

 private:
  std::string buffer_;
};

Output& standard_output();

// One object on a line. Bytes that are no UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& object);

// A JSON number, or null for what is not finite.
std::string json_number(float x);
std::string json_number(double x);
nlohmann::ordered_json finite_or_null(double x);

bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();

void note(std::string_view text);  // a line on stderr, by the command's name

// A line on stderr that long work rewrites; nothing when stderr is no terminal.
class Progress {
 public:
  ~Progress() { clear(); }
  void show(std::string_view line);                                    // at most a few times a second
  void show_share(std::string_view doing, int64_t done, int64_t all);  // "doing: 12 %"
  void clear();

 private:
  double last_ = 0;
  bool shown_ = false;
};

double seconds_now();  // of a clock that only goes forward

}  // namespace ssm::app
