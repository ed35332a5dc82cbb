// Work that takes long: a progress line on a terminal, and nothing half done where it is stopped.
#include <gtest/gtest.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <thread>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

TEST(CommandLongWork, ShowsHowFarItIsOnATerminalAlone) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Once upon a time there was a line. ";
  const fs::path adapter = kSource / "tests/goldens/adapters/mamba-recipe";
  const auto check = [&](const std::string& line, Words words, const fs::path& made = {}) {
    for (const bool terminal : {true, false}) {
      fs::remove_all(made);
      Command command(words);
      command.terminal = terminal;
      const CommandResult result = command.run();
      EXPECT_EQ(result.code, 0) << result.err;
      EXPECT_EQ(result.err.find(line) != std::string::npos, terminal) << line << ": " << result.err;
    }
  };
  check("packing: 0 %", {"quantize", kBundled, folder / "q", "--type", "q8_0"}, folder / "q");
  check("calibrating: ",
        {"quantize", kBundled, folder / "c", "--type", "int8", "--calibrate", kSource / "README.md"},
        folder / "c");
  check("writing: 0 %", {"convert", kBundled, folder / "g.gguf"}, folder / "g.gguf");
  check("merging: 0 %", {"merge", kSource / "tests/goldens/models/mamba-default", adapter, folder / "m"},
        folder / "m");
  check("packing: 0 %", {"score", kBundled, "--tokens", "1,2", "--quantize", "q8_0", "--device", "cpu"});
  check("reading: ", {"generate", "--prompt", text, "-n", "1", "--temperature", "0", "--device", "cpu"});
}

// Sends `signal` to who writes beside `target`, as soon as it does.
void interrupt(const fs::path& folder, int signal, const std::atomic<bool>& over) {
  while (!over) {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const std::string name = entry.path().filename();
      const size_t at = name.find(".tmp-");
      pid_t process = 0;
      if (at == name.npos) continue;
      std::from_chars(name.data() + at + 5, name.data() + name.size(), process);
      if (process > 1) kill(process, signal);
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(CommandLongWork, LeavesNothingWhereItIsStopped) {
  for (const int signal : {SIGINT, SIGTERM}) {
    for (const char* name : {"small", "small.gguf"}) {
      const TempFolder folder;
      std::atomic<bool> over = false;
      std::thread watcher([&] { interrupt(folder.path(), signal, over); });
      const std::string target = folder / name;
      const CommandResult result = ssm({"quantize", kBundled, target, "--type", "q4_k", "--threads", "1"});
      over = true;
      watcher.join();
      EXPECT_EQ(result.code, 1);
      EXPECT_EQ(result.err, "ssm: " + target + ": stopped, nothing was written\n");
      EXPECT_TRUE(fs::is_empty(folder.path()));
    }
  }
}

}  // namespace
}  // namespace ssm::test
