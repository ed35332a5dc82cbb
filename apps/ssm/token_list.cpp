#include "apps/ssm/token_list.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "apps/ssm/flags.h"
#include "ssm/core/error.h"

namespace ssm::app {
namespace {

std::string read_all(int fd, std::string_view name) {
  std::string text;
  constexpr size_t kBlock = 1 << 16;
  for (;;) {
    const size_t size = text.size();
    if (text.capacity() - size < kBlock) text.reserve(2 * text.capacity() + kBlock);
    text.resize(size + kBlock);
    const ssize_t n = ::read(fd, text.data() + size, kBlock);
    text.resize(size + static_cast<size_t>(n > 0 ? n : 0));
    if (n == 0) return text;
    if (n < 0 && errno != EINTR) fail("{}: cannot read: {}", name, std::strerror(errno));
  }
}

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

}  // namespace

std::string read_stdin() { return read_all(STDIN_FILENO, "standard input"); }

std::string read_text_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("{}: cannot open: {}", path, std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } closer{fd};
  return read_all(fd, path);
}

std::vector<int32_t> parse_tokens(std::string_view text, std::string_view from) {
  text = trim(text);
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') {
    text = trim(text.substr(1, text.size() - 2));
  }
  std::vector<int32_t> ids;
  while (!text.empty()) {
    int32_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    const size_t length = std::min(text.find_first_of(", \t\r\n"), text.size());
    if (error != std::errc() || id < 0 || static_cast<size_t>(end - text.data()) != length) {
      fail("{}: \"{}\" at position {} is not a token id", from, text.substr(0, std::min<size_t>(length, 40)),
           ids.size());
    }
    ids.push_back(id);
    text = trim(text.substr(length));
    if (!text.empty() && text.front() == ',') {
      text = trim(text.substr(1));
      SSM_CHECK(!text.empty(), "{}: ends in a comma", from);
    }
  }
  return ids;
}

std::vector<int32_t> read_tokens(const std::string& argument) {
  if (argument == "-") return parse_tokens(read_stdin(), "standard input");
  if (argument.starts_with('@')) {
    const std::string file = argument.substr(1);
    return parse_tokens(read_text_file(file), file);
  }
  return reading_arguments([&] { return parse_tokens(argument, "--tokens"); });
}

}  // namespace ssm::app
