// Runs the built program as a shell would: arguments, standard input, and what came back.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "ssm/core/test_folder.h"

namespace ssm::test {

struct CommandResult {
  int code = -1;  // of the exit; 128 + the signal's number when one ended it
  std::string out, err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

class Command {
 public:
  explicit Command(std::vector<std::string> arguments, std::string input = "")
      : arguments_(std::move(arguments)), input_(std::move(input)) {}

  // Called with the process and the output so far, whenever there is more of it.
  std::function<void(pid_t, const std::string&)> on_output;
  std::vector<std::pair<std::string, std::string>> environment;
  bool terminal = false;  // standard error is one

  CommandResult run() {
    const auto in = make_pipe(), out = make_pipe(), err = terminal ? make_terminal() : make_pipe();
    const pid_t child = fork();
    if (child < 0) throw std::runtime_error("fork");
    if (child == 0) execute(in[0], out[1], err[1]);
    for (const int fd : {in[0], out[1], err[1]}) close(fd);
    CommandResult result;
    exchange(child, in[1], out[0], err[0], result);
    int status = 0;
    waitpid(child, &status, 0);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
  }

 private:
  static std::array<int, 2> make_pipe() {
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe");
    return ends;
  }

  static std::array<int, 2> make_terminal() {
    std::array<int, 2> ends{};
    if (openpty(&ends[0], &ends[1], nullptr, nullptr, nullptr) != 0) throw std::runtime_error("openpty");
    for (const int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
    return ends;
  }

  [[noreturn]] void execute(int in, int out, int err) {
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv{const_cast<char*>("ssm")};
    for (std::string& argument : arguments_) argv.push_back(argument.data());
    argv.push_back(nullptr);
    execv(SSM_COMMAND, argv.data());
    _exit(127);
  }

  void exchange(pid_t child, int in, int out, int err, CommandResult& result) {
    signal(SIGPIPE, SIG_IGN);
    fcntl(in, F_SETFL, O_NONBLOCK);
    std::array<pollfd, 3> fds{{{in, POLLOUT, 0}, {out, POLLIN, 0}, {err, POLLIN, 0}}};
    size_t written = 0;
    auto finish = [](pollfd& p) {
      close(p.fd);
      p.fd = -1;
    };
    if (input_.empty()) finish(fds[0]);
    while (fds[1].fd >= 0 || fds[2].fd >= 0) {
      if (poll(fds.data(), fds.size(), -1) < 0) continue;
      if (fds[0].fd >= 0 && fds[0].revents) {
        const ssize_t n = write(in, input_.data() + written, input_.size() - written);
        if (n > 0) written += static_cast<size_t>(n);
        if ((n < 0 && errno != EAGAIN) || written == input_.size()) finish(fds[0]);
      }
      for (size_t i = 1; i < fds.size(); ++i) {
        if (fds[i].fd < 0 || !fds[i].revents) continue;
        std::array<char, 4096> block;
        const ssize_t n = read(fds[i].fd, block.data(), block.size());
        if (n <= 0) {
          finish(fds[i]);
          continue;
        }
        (i == 1 ? result.out : result.err).append(block.data(), static_cast<size_t>(n));
        if (i == 1 && on_output) on_output(child, result.out);
      }
    }
    if (fds[0].fd >= 0) finish(fds[0]);
  }

  std::vector<std::string> arguments_;
  std::string input_;
};

inline CommandResult ssm(std::vector<std::string> arguments, std::string input = "") {
  return Command(std::move(arguments), std::move(input)).run();
}

inline std::string joined(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) {
    if (!text.empty()) text += ',';
    text += std::to_string(id);
  }
  return text;
}

inline const std::filesystem::path kSource = SSM_SOURCE_DIR;
inline const std::string kBundled = kSource / "models/tale-10m";
inline const std::string kTiny = kSource / "tests/goldens/models/mamba-default";  // no tokenizer

}  // namespace ssm::test
