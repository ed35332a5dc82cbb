// ssm train as a user runs it: a result that others read, and work that is never lost, whatever ends the
// process.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A text with something to learn, and the arguments that train a tiny model on its bytes.
class Training {
 public:
  Training() {
    std::string text;
    for (int i = 0; i < 400; ++i)
      text += "line " + std::to_string(i * i) + " of a text that counts its squares\n";
    write(folder_ / "text.txt", text);
  }

  fs::path out(const std::string& name) const { return folder_ / name; }

  Words arguments(const std::string& name, const Words& more = {}) const {
    Words words{"train",        (folder_ / "text.txt").string(),
                "--out",        out(name).string(),
                "--tokenizer",  "bytes",
                "--width",      "32",
                "--layers",     "2",
                "--state",      "16",
                "--head-dim",   "16",
                "--batch",      "2",
                "--length",     "48",
                "--steps",      "30",
                "--save-every", "4",
                "--log-every",  "1",
                "--device",     "cpu"};
    for (size_t i = 0; i < more.size(); ++i) {
      const auto given = std::find(words.begin(), words.end(), more[i]);
      if (given != words.end() && more[i].starts_with("--")) {
        given[1] = more[++i];
      } else {
        words.push_back(more[i]);
      }
    }
    const auto family = std::find(words.begin(), words.end(), "--family");
    if (family != words.end() && family[1] != "mamba2") {
      const auto heads = std::find(words.begin(), words.end(), "--head-dim");
      words.erase(heads, heads + 2);
    }
    return words;
  }

  CommandResult train(const std::string& name, const Words& more = {}) const {
    Command command(arguments(name, more));
    command.environment = {{"XDG_CACHE_HOME", (folder_ / "cache").string()}};
    return command.run();
  }

  // Through a shell, for limits and signals; the exit code as a shell sees it.
  int shell(const std::string& before, const std::string& name, const Words& more = {}) const {
    std::string line =
        "XDG_CACHE_HOME='" + (folder_ / "cache").string() + "' " + before + " '" SSM_COMMAND "'";
    for (const std::string& word : arguments(name, more)) line += " '" + word + "'";
    const int status = std::system((line + " > /dev/null 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  TempFolder folder_;
};

TEST(CommandTrain, WritesAModelThatLearnedAndEverythingAroundIt) {
  const Training training;
  const CommandResult result = training.train("run", {"--valid-fraction", "0.1", "--json", "--lr", "5e-3"});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json json = result.json();
  EXPECT_EQ(json["steps"], 30);
  EXPECT_EQ(json["finished"], true);
  EXPECT_LT(json["loss"], 4.0);  // of a uniform guess: 5.55
  EXPECT_LT(json["validation_loss"], 4.5);
  const fs::path out = training.out("run");
  for (const char* file : {"config.json", "model.safetensors", "metrics.jsonl", "report.html", "events"}) {
    EXPECT_TRUE(fs::exists(out / file)) << file;
  }
  EXPECT_FALSE(fs::exists(out / "checkpoints/step-00000024"));  // two are kept
  EXPECT_TRUE(fs::exists(out / "checkpoints/step-00000028/training.json"));
  for (const fs::path& model : {out, out / "checkpoints/step-00000030"}) {
    const CommandResult scored = ssm({"score", model.string(), "--tokens", "108,105,110,101", "--json"});
    EXPECT_EQ(scored.code, 0) << scored.err;
  }
  // Not into the folder of another run by accident.
  const CommandResult again = training.train("run");
  EXPECT_EQ(again.code, 1);
  EXPECT_NE(again.err.find("--resume"), std::string::npos) << again.err;
}

// Who trained on bytes writes with the result as with any other: it brings a tokenizer.
TEST(CommandTrain, AResultOfBytesReadsAndWritesText) {
  const Training training;
  ASSERT_EQ(training.train("bytes", {"--steps", "2"}).code, 0);
  const std::string model = training.out("bytes").string(), text = "line 4\n\xC3\xA9 \xFF";
  EXPECT_EQ(ssm({"tokenize", model}, text).out, "108,105,110,101,32,52,10,195,169,32,255\n");
  const CommandResult written = ssm({"generate", model, "line", "-n", "4", "--temperature", "0", "--json"});
  ASSERT_EQ(written.code, 0) << written.err;
  const CommandResult tuned = ssm({"finetune", training.out("text.txt").string(), "--from", model, "--out",
                                   training.out("tuned").string(), "--steps", "1", "--length", "32"});
  EXPECT_EQ(tuned.code, 0) << tuned.err;
  EXPECT_EQ(ssm({"generate", model, "line", "-n", "4", "--adapter", training.out("tuned").string()}).code, 0);
}

// Whatever its file is called and wherever it lies, and in checkpoints too.
TEST(CommandTrain, AResultBringsTheTokenizerItWasGiven) {
  const Training training;
  const fs::path mine = training.out("mine.json"), near = training.out("near");
  fs::copy(kBundled + "/tokenizer.json", mine);
  fs::create_directory(near);
  const std::string ids = ssm({"tokenize"}, "Once upon a time").out;
  const auto train = [&](const std::string& from, const Words& arguments) {
    const std::string line =
        "cd '" + training.out("").string() + "' && XDG_CACHE_HOME=cache '" SSM_COMMAND "' ";
    std::string words = from;
    for (const std::string& word : arguments) words += " '" + word + "'";
    return std::system((line + words + " >/dev/null 2>&1").c_str());
  };
  const Words small{"--tokenizer", "mine.json", "--out",    "near/run", "--device", "cpu",
                    "--steps",     "1",         "--length", "32",       "--batch",  "1"};
  ASSERT_EQ(train("train text.txt --layers 1 --width 32 --head-dim 16", small), 0);
  for (const char* model : {"run", "run/checkpoints/step-00000001"})
    EXPECT_EQ(ssm({"tokenize", near / model}, "Once upon a time").out, ids) << model;
  Words further = small;
  further[3] = "near/further";
  ASSERT_EQ(train("train text.txt --from '" + kBundled + "'", further), 0);
  EXPECT_EQ(ssm({"tokenize", near / "further"}, "Once upon a time").out, ids);
}

TEST(CommandTrain, ARunGoesOnWithTheOptionsItWasBegunWith) {
  const Training training;
  ASSERT_EQ(training.train("run", {"--steps", "2"}).code, 0);
  const auto refused = [&](const Words& more, const std::string& part) {
    Words words{"--resume", "--steps", "3"};
    words.insert(words.begin(), more.begin(), more.end());
    const CommandResult result = training.train("run", words);
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.err.find("ssm: " + training.out("run").string() + ": cannot go on"), 0u) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  refused({"--length", "24"}, "with length 24: this run was begun with 48");
  refused({"--batch", "3"}, "with batch 3: this run was begun with 2");
  refused({"--mode", "stream"}, "with mode \"stream\": this run was begun with \"packed\"");
  refused({"--seed", "5"}, "with seed 5");
  write(training.out("text.txt"), "other documents than before\n");
  refused({}, "begun with other documents");
}

TEST(CommandTrain, AFileBehindAnotherOnesFlagIsData) {
  const Training training;
  write(training.out("held.txt"), "line of a held-out text\n");
  write(training.out("more.txt"), "line of more text\n");
  const CommandResult result =
      training.train("run", {"--steps", "1", "--valid", training.out("held.txt").string(),
                             training.out("more.txt").string(), "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(result.json()["validation_loss"].is_null());
  const std::string metrics = bytes_of(training.out("run") / "metrics.jsonl");
  EXPECT_NE(metrics.find("more.txt"), std::string::npos);
  EXPECT_EQ(metrics.find("held.txt"), std::string::npos);
}

TEST(CommandTrain, EveryFamilyAndModeTrains) {
  const Training training;
  for (const char* family : {"mamba", "mamba2", "falcon_mamba"}) {
    for (const char* mode : {"packed", "stream", "documents"}) {
      const std::string name = std::string(family) + mode;
      const CommandResult result =
          training.train(name, {"--family", family, "--mode", mode, "--steps", "3", "--json", "--recompute"});
      ASSERT_EQ(result.code, 0) << name << result.err;
      EXPECT_LT(result.json()["loss"], 6.0) << name;
    }
  }
}

// The same bytes whatever ended the process, and how often.
TEST(CommandTrain, AKilledRunGoesOnAsIfNothingHadHappened) {
  const Training training;
  std::mt19937 random(7);
  for (const Words& how : {Words{"--mode", "packed"}, Words{"--mode", "stream", "--ema", "0.9"}}) {
    const std::string name = how[1];
    ASSERT_EQ(training.train("whole-" + name, how).code, 0);
    // Each attempt is given longer to live than the last, from less than a start takes to more than the whole
    // run, however fast the machine is.
    int kills = 0, code = -1;
    double seconds = 0.005;
    for (int attempt = 0; attempt < 60 && code != 0; ++attempt) {
      Words more = how;
      more.emplace_back("--resume");
      const char* signal = attempt % 3 == 2 ? "TERM" : "KILL";
      code = attempt < 40 ? training.shell(fmt::format("timeout -s {} {:.4f}", signal, seconds),
                                           "killed-" + name, more)
                          : training.shell("", "killed-" + name, more);
      kills += code != 0;
      seconds += 0.01 * std::uniform_real_distribution<double>(0, 1)(random);
    }
    EXPECT_EQ(code, 0);
    EXPECT_GT(kills, 0);
    for (const char* file : {"model.safetensors", "checkpoints/step-00000030/model.safetensors",
                             "checkpoints/step-00000030/training.safetensors"}) {
      EXPECT_EQ(bytes_of(training.out("killed-" + name) / file),
                bytes_of(training.out("whole-" + name) / file))
          << name << " " << file;
    }
  }
}

TEST(CommandTrain, SigtermSavesACheckpointAndStops) {
  const Training training;
  EXPECT_EQ(training.shell("timeout -s TERM 3", "run", {"--steps", "1000000", "--save-every", "0"}), 124);
  EXPECT_FALSE(fs::is_empty(training.out("run") / "checkpoints"));
  EXPECT_FALSE(fs::exists(training.out("run") / "model.safetensors"));
}

TEST(CommandTrain, ADamagedNewestCheckpointIsPassedOver) {
  const Training training;
  ASSERT_EQ(training.train("run").code, 0);
  const std::string expected = bytes_of(training.out("run") / "model.safetensors");
  const fs::path newest = training.out("run") / "checkpoints/step-00000030";
  for (const char* file : {"model.safetensors", "training.safetensors", "training.json"}) {
    std::string bytes = bytes_of(newest / file);
    // A digit of the JSON becomes another one: what can be read may be damaged too.
    const size_t digit = bytes.find("\"steps\": 30");
    const bool json = digit != std::string::npos;
    bytes[json ? digit + 10 : bytes.size() / 2] ^= json ? 0x04 : 0x10;
    write(newest / file, bytes);
    fs::remove(training.out("run") / "model.safetensors");
    const CommandResult result = training.train("run", {"--resume"});
    ASSERT_EQ(result.code, 0) << file << result.err;
    EXPECT_NE(result.err.find("passing over"), std::string::npos) << file << result.err;
    EXPECT_EQ(bytes_of(training.out("run") / "model.safetensors"), expected) << file;
  }
}

// A limit on the size of files does what a full disk does: write() fails.
TEST(CommandTrain, AFullDiskLosesNoCheckpoint) {
  const Training training;
  ASSERT_EQ(training.train("run", {"--steps", "8"}).code, 0);
  const std::string before = bytes_of(training.out("run") / "checkpoints/step-00000008/training.safetensors");
  const int code = training.shell("trap '' XFSZ; ulimit -f 8;", "run", {"--resume"});
  EXPECT_EQ(code, 1);
  EXPECT_EQ(bytes_of(training.out("run") / "checkpoints/step-00000008/training.safetensors"), before);
  EXPECT_EQ(training.train("run", {"--resume"}).code, 0);
  ASSERT_EQ(training.train("whole").code, 0);
}

TEST(CommandTrain, BadInputIsOneLine) {
  const Training training;
  const std::vector<std::pair<Words, std::string>> cases{
      {{"--valid", "/no/such/file.txt"}, "/no/such/file.txt"},
      {{"--width", "33"}, "head"},
      {{"--dtype", "bf16"}, "f32"},
      {{"--dtype", "f16"}, "underflow"},
      {{"--family", "rwkv"}, "rwkv"},
      {{"--tokenizer", "/no/tokenizer.json"}, "/no/tokenizer.json"}};
  for (const auto& [more, part] : cases) {
    const CommandResult result = training.train("run", more);
    EXPECT_GT(result.code, 0) << part;
    EXPECT_LT(result.code, 126) << part;
    EXPECT_NE(result.err.find(part), std::string::npos) << part << ": " << result.err;
    EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << result.err;
    EXPECT_FALSE(fs::exists(training.out("run"))) << part;
  }
}

TEST(CommandTrain, NumbersThatMakeNoSenseAreNamedShortly) {
  const Training training;
  const std::vector<Words> cases{{"--lr", "0", "above 0"},          {"--lr", "nan", "above 0"},
                                 {"--epochs", "inf", "above 0"},    {"--clip", "-1", "from 0 on"},
                                 {"--weight-decay", "x", "from 0"}, {"--beta1", "1", "0 and 0.9999"},
                                 {"--ema", "2", "0 and 0."},        {"--valid-fraction", "1", "0.9"},
                                 {"--seed", "-1", "whole number"},  {"--min-lr", "-1", "from 0"}};
  for (const Words& words : cases) {
    const CommandResult result = training.train("run", {words[0], words[1]});
    EXPECT_EQ(result.code, 2) << words[0];
    EXPECT_EQ(result.err.find("ssm: " + words[0] + ": " + words[1] + " is not"), 0u) << result.err;
    EXPECT_NE(result.err.find(words[2]), std::string::npos) << result.err;
    EXPECT_LT(result.err.size(), 120u) << result.err;
  }
  EXPECT_FALSE(fs::exists(training.out("run")));
}

TEST(CommandTrain, AFlagThatWouldDoNothingIsRefused) {
  const TempFolder folder;
  const std::string text = kSource / "CMakeLists.txt", out = folder / "run";
  const auto refused = [&](const Words& more, const std::string& part) {
    Words words{"train", text, "--out", out, "--steps", "1"};
    words.insert(words.end(), more.begin(), more.end());
    const CommandResult result = ssm(words);
    EXPECT_GT(result.code, 0) << part;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_FALSE(fs::exists(out)) << part;
  };
  refused({"--from", kBundled, "--width", "64"}, "--width");
  refused({"--shape", "mamba-130m", "--layers", "2"}, "--layers");
  refused({"--config", kTiny + "/config.json", "--state", "8"}, "--state");
  refused({"--valid", text, "--valid-fraction", "0.1"}, "--valid-fraction");
  refused({"--state-over-documents"}, "--mode stream");
  refused({"--shape", "mamba-1b"}, "mamba-1b");
  refused({"--config", "/no/such.json"}, "/no/such.json");
}

}  // namespace
}  // namespace ssm::test
