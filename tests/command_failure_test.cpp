// What the command refuses: one line on stderr, nothing on stdout, exit code 1, or 2 for arguments.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

constexpr int kFailure = 1, kUsage = 2;

void expect_refusal(int code, const std::string& part, const std::vector<std::string>& arguments,
                    const std::string& input = "") {
  const CommandResult result = ssm(arguments, input);
  std::string line;
  for (const std::string& argument : arguments) line += argument + " ";
  EXPECT_EQ(result.code, code) << line;
  EXPECT_EQ(result.out, "") << line;
  EXPECT_EQ(result.err.find("ssm: "), 0u) << line << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << line << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << line << result.err;
}

std::string contents(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(CommandFailure, Arguments) {
  expect_refusal(kUsage, "no such verb", {"generat"});
  expect_refusal(kUsage, "--nosuch", {"generate", "--nosuch"});
  expect_refusal(kUsage, "--nosuch: no such flag", {"--nosuch"});
  expect_refusal(kUsage, "trian: no such verb", {"tokenizer", "trian"});
  expect_refusal(kUsage, "ssm bench compare --help", {"bench", "compare", kTiny});
  expect_refusal(kUsage, "ssm tokenizer train --help", {"tokenizer", "train"});
  for (const char* verb : {"chat", "serve"}) expect_refusal(kUsage, "--json", {verb, kTiny, "--json"});
  expect_refusal(kUsage, "--api-key: the key is empty", {"serve", kTiny, "--api-key", ""});
  expect_refusal(kUsage, "ssm generate --help", {"generate", "a", "b", "c"});
  for (const char* bad : {"nan", "inf", "-1", "x", "", "1e99"}) {
    expect_refusal(kUsage, "--temperature", {"generate", "a", "--temperature", bad});
  }
  for (const char* bad : {"nan", "1.5", "-0.1", "x"})
    expect_refusal(kUsage, "--top-p", {"generate", "a", "--top-p", bad});
  for (const char* bad : {"nan", "1", "-1"})
    expect_refusal(kUsage, "--min-p", {"generate", "a", "--min-p", bad});
  for (const char* bad : {"0", "nan", "-2"}) {
    expect_refusal(kUsage, "--repetition-penalty", {"generate", "a", "--repetition-penalty", bad});
  }
  for (const char* bad : {"-1", "x", "4294967296"})
    expect_refusal(kUsage, "--top-k", {"generate", "a", "--top-k", bad});
  for (const char* bad : {"-2", "1.5", "x", "99999999999999999999"}) {
    expect_refusal(kUsage, "--max-new-tokens", {"generate", "a", "-n", bad});
  }
  for (const char* bad : {"-1", "x", "18446744073709551616"}) {
    expect_refusal(kUsage, "--seed", {"generate", "a", "--seed", bad});
  }
  for (const char* bad : {"0", "-1", "x", "100000"})
    expect_refusal(kUsage, "--threads", {"info", "--threads", bad});
  expect_refusal(kUsage, "--dtype", {"info", "--dtype", "f64"});
  expect_refusal(kUsage, "--device", {"info", "--device", "gpu"});
  expect_refusal(kFailure, "no CUDA support", {"info", "--device", "cuda"});
  expect_refusal(kUsage, "--file", {"score", "--file", "a", "--tokens", "1"});
  expect_refusal(kUsage, "two prompts", {"generate", kBundled, "a", "--prompt", "b"});
  expect_refusal(kUsage, "--save-state",
                 {"generate", "--prompt", "a", "--prompt", "b", "--save-state", "/tmp/x"});
  expect_refusal(kUsage, "--kv-memory", {"info", "--kv-memory", "0"});
  expect_refusal(kFailure, "known shape", {"bench", "nosuch"});
  for (const char* bad : {"-1", "65536", "x"}) {
    expect_refusal(kUsage, "whole number between 0 and 65535", {"serve", "--port", bad});
  }
  expect_refusal(kUsage, "whole number", {"bench", "compare", kTiny, kTiny, "--batches", "1,0"});
}

// A flag that would do nothing is an error, not a silence.
TEST(CommandFailure, WhatWouldDoNothing) {
  expect_refusal(kUsage, "bench ops takes no MODEL", {"bench", kTiny, "ops"});
  expect_refusal(kUsage, "bench compare takes no --batch",
                 {"bench", "--batch", "2", "compare", kTiny, kTiny});
  expect_refusal(kUsage, "two models", {"bench", kTiny, "--model-name", "mamba-130m"});
  expect_refusal(kUsage, "--group 64", {"score", kTiny, "--tokens", "1", "--group", "64"});
  expect_refusal(kUsage, "--decode", {"tokenize", "--tokens", "1"});
  expect_refusal(kUsage, "no name of the hub", {"pull", "mamba"});
  const TempFolder folder;
  const std::string text = kSource / "README.md", out = folder / "out";
  const auto train = [&](const char* part, const std::vector<std::string>& more) {
    std::vector<std::string> arguments{"train", text, "--out", out, "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    expect_refusal(kUsage, part, arguments);
  };
  train("--head-dim 32", {"--family", "mamba", "--head-dim", "32"});
  train("--validate-every 5", {"--validate-every", "5"});
  train("--epochs", {"--steps", "3", "--epochs", "2"});
  train("--min-lr", {"--schedule", "constant", "--min-lr", "1e-4"});
  train("--state-over-documents", {"--state-over-documents"});
  train("--shape huge", {"--shape", "huge"});
  train("--dtype f16", {"--dtype", "f16"});
  train("--head-dim", {"--width", "100"});
  expect_refusal(kUsage, "special token",
                 {"tokenizer", "train", text, "--vocab-size", "300", "--out", out, "--special-token", "a"});
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(CommandFailure, TokensAndPrompts) {
  expect_refusal(kFailure, "token 48 ", {"score", kTiny, "--tokens", "1,2,48"});
  expect_refusal(kFailure, "outside the vocabulary", {"generate", kTiny, "--tokens", "1,100000"});
  for (const char* bad : {"-1", "1,x", "1,,2", "1,", "99999999999", "1.5", "1;2", "[1,2"}) {
    expect_refusal(kUsage, "--tokens", {"score", kTiny, "--tokens", bad});
  }
  expect_refusal(kUsage, "no id", {"score", kTiny, "--tokens", ""});
  expect_refusal(kUsage, "no id", {"generate", kTiny, "--tokens", ""});
  expect_refusal(kFailure, "not a token id", {"score", kTiny, "--tokens", "-"}, "1,x");
  expect_refusal(kFailure, "/nosuch", {"score", kTiny, "--tokens", "@/nosuch"});
  expect_refusal(kFailure, "/nosuch: cannot open: ", {"score", kBundled, "--file", "/nosuch"});
  expect_refusal(kFailure, "/: cannot read: ", {"score", kBundled, "--file", "/"});
  expect_refusal(kFailure, "empty", {"score", kBundled});
  expect_refusal(kUsage, "no prompt", {"generate", kBundled});
  expect_refusal(kFailure, "empty", {"generate", kBundled, ""});
  expect_refusal(kUsage, "--stop", {"generate", kBundled, "a", "--stop", ""});
  expect_refusal(kFailure, "tokenizer", {"generate", kTiny, "Once upon a time"});
  expect_refusal(kFailure, "tokenizer", {"generate", kTiny, "--tokens", "1", "--stop", "a"});
  expect_refusal(kFailure, "tokenizer", {"score", kTiny}, "text");
  expect_refusal(kFailure, "tokenizer", {"tokenize", kTiny}, "text");
  expect_refusal(kFailure, "/nosuch", {"info", kTiny, "--tokenizer", "/nosuch"});
  expect_refusal(kFailure, "6144", {"tokenize", "--decode", "--tokens", "1,6144"});
}

TEST(CommandFailure, Models) {
  TempFolder folder;
  expect_refusal(kFailure, "/nosuch/folder", {"generate", "/nosuch/folder", "a"});
  expect_refusal(kFailure, "nosuch", {"generate", "nosuch", "--tokens", "1"});
  setenv("HF_HUB_OFFLINE", "1", 1);
  for (const char* part : {"model cache", "HF_HUB_OFFLINE"}) {
    expect_refusal(kFailure, part, {"score", "no-such-owner/no-such-model", "--tokens", "1"});
  }
  unsetenv("HF_HUB_OFFLINE");
  expect_refusal(kFailure, "empty", {"info", folder.path()});
  for (const char* file : {"config.json", "model.safetensors"}) {
    fs::create_directory(folder / "damaged");
    for (const auto& entry : fs::directory_iterator(kTiny)) fs::copy(entry, folder / "damaged");
    const std::string whole = contents(fs::path(kTiny) / file);
    for (const double part : {0.0, 0.01, 0.5, 0.95}) {
      std::ofstream(fs::path(folder / "damaged") / file, std::ios::binary)
          << whole.substr(0, static_cast<size_t>(part * static_cast<double>(whole.size())));
      expect_refusal(kFailure, file, {"score", folder / "damaged", "--tokens", "1,2"});
    }
    fs::remove_all(folder / "damaged");
  }
  // Nothing of a file's name reaches the terminal as it is.
  expect_refusal(kFailure, "no such file or folder", {"info", "/a\n\x1b[31mb"});
}

TEST(CommandFailure, States) {
  TempFolder folder;
  const std::string state = folder / "state";
  ASSERT_EQ(ssm({"generate", kTiny, "--tokens", "1,2", "-n", "3", "--seed", "1", "--save-state", state}).code,
            0);
  expect_refusal(kFailure, "state", {"generate", kBundled, "--load-state", state});
  expect_refusal(kFailure, "nosuch", {"generate", kTiny, "--load-state", folder / "nosuch"});
  // Known before a text is written, not after.
  const std::vector<std::string> save{"generate", kTiny, "--tokens", "1", "-n", "3", "--seed", "1"};
  for (const fs::path& where : {folder / "none/state", folder.path()}) {
    std::vector<std::string> arguments = save;
    arguments.insert(arguments.end(), {"--save-state", where});
    expect_refusal(kFailure, where, arguments);
  }
  const std::string whole = contents(state);
  std::ofstream(state, std::ios::binary) << whole.substr(0, whole.size() / 2);
  expect_refusal(kFailure, "state", {"generate", kTiny, "--load-state", state});
  expect_refusal(kFailure, "model.safetensors",
                 {"generate", kTiny, "--load-state", kTiny + "/model.safetensors"});
}

// Its standard output is a full disk, or a pipe that nobody reads.
CommandResult run_in_shell(const std::string& redirection) {
  const std::string command = std::string("bash -o pipefail -c \"'") + SSM_COMMAND + "' generate '" +
                              kBundled + "' 'Once upon a time' -n -1 --ignore-eos --seed 1 2>&3 " +
                              redirection + "\" 3>&1";
  FILE* shell = popen(command.c_str(), "r");
  CommandResult result;
  result.err.resize(300);
  result.err.resize(fread(result.err.data(), 1, result.err.size(), shell));
  result.code = WEXITSTATUS(pclose(shell));
  return result;
}

TEST(CommandFailure, AClosedPipeEndsQuietlyAFullDiskDoesNot) {
  const CommandResult full = run_in_shell(">/dev/full");
  EXPECT_EQ(full.code, kFailure);
  EXPECT_EQ(full.err, "ssm: standard output: No space left on device\n");
  const CommandResult closed = run_in_shell("| head -c 20 >/dev/null");
  EXPECT_EQ(closed.code, 0);
  EXPECT_EQ(closed.err, "");
}

TEST(CommandHelp, TeachesAndSucceeds) {
  EXPECT_EQ(ssm({"--version"}).out.find("ssm "), 0u);
  EXPECT_EQ(ssm({}).code, 0);
  for (const char* verb : {"generate", "chat", "score", "tokenize", "info", "bench"}) {
    const CommandResult help = ssm({verb, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_NE(help.out.find("Examples:"), std::string::npos) << verb;
    EXPECT_NE(help.out.find(std::string("Usage: ssm ") + verb), std::string::npos) << help.out;
  }
}

TEST(CommandHub, AModelInTheCacheIsFoundByName) {
  TempFolder folder;
  const fs::path cached = folder.path() / "models--o--tiny";
  fs::create_directories(cached / "refs");
  fs::create_directories(cached / "snapshots");
  std::ofstream(cached / "refs/main") << "abc";
  fs::create_directory_symlink(kTiny, cached / "snapshots/abc");
  Command command({"generate", "o/tiny", "--tokens", "1,2,3", "--temperature", "0", "--json"});
  command.environment = {{"HF_HUB_CACHE", folder.path()}};
  const CommandResult result = command.run();
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, ssm({"generate", kTiny, "--tokens", "1,2,3", "--temperature", "0", "--json"}).out);
}

}  // namespace
}  // namespace ssm::test
