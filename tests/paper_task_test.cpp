// The programs of examples/paper on small versions of their tasks: seconds on a CPU, and learning to be seen.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ssm/core/test_folder.h"

namespace ssm::test {
namespace {

using Json = nlohmann::json;

// The lines that a task prints; empty where it fails.
std::vector<Json> run(const std::string& task, const std::string& arguments) {
  const std::string line = std::string(SSM_PAPER_TASKS) + "/" + task + " --device cpu " + arguments + " 2>&1";
  FILE* const pipe = popen(line.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::string text;
  char block[4096];
  while (const size_t n = fread(block, 1, sizeof block, pipe)) text.append(block, n);
  EXPECT_EQ(pclose(pipe), 0) << text;
  std::vector<Json> lines;
  for (size_t begin = 0; begin < text.size(); begin = text.find('\n', begin) + 1) {
    lines.push_back(Json::parse(text.substr(begin, text.find('\n', begin) - begin), nullptr, false));
    EXPECT_FALSE(lines.back().is_discarded()) << text;
  }
  return lines;
}

double last_accuracy(const std::vector<Json>& lines) {
  return lines.empty() ? -1 : lines.back().value("accuracy", -1.0);
}

TEST(PaperTask, InductionHeadsAreLearnedAndHoldAtOtherLengths) {
  const TempFolder folder;
  const auto lines =
      run("induction_heads", "--out " + (folder / "run").string() +
                                 " --length 16 --vocab 8 --width 32 --batch 32 --lr 5e-3 --steps 1500"
                                 " --evaluate-every 100 --stop-at 1 --shortest 8 --longest 64"
                                 " --long-tests 32");
  ASSERT_GE(lines.size(), 5u);
  EXPECT_EQ(lines.back()["length"], 64);
  double sum = 0;
  for (size_t i = lines.size() - 4; i < lines.size(); ++i) sum += lines[i]["accuracy"].get<double>();
  EXPECT_GT(lines[lines.size() - 5]["accuracy"].get<double>(), 0.95) << "at the length of training";
  EXPECT_GT(sum / 4, 0.6) << "an eighth would be chance";
}

TEST(PaperTask, RecallIsLearned) {
  const TempFolder folder;
  const auto lines =
      run("mqar", "--out " + (folder / "run").string() +
                      " --length 16 --pairs 2 --vocab 32 --width 32 --batch 64 --examples 20000"
                      " --tests 256 --lr 1e-2 --schedule constant --weight-decay 0 --steps 2000"
                      " --evaluate-every 100 --stop-at 0.9");
  EXPECT_GT(last_accuracy(lines), 0.8) << "one of the two values by chance: a half";
}

TEST(PaperTask, SelectiveCopyingIsLearned) {
  const TempFolder folder;
  const auto lines = run("selective_copying", "--out " + (folder / "run").string() +
                                                  " --length 24 --data 3 --vocab 8 --batch 32 --lr 3e-3"
                                                  " --steps 1200 --evaluate-every 100 --stop-at 0.9");
  EXPECT_GT(last_accuracy(lines), 0.6) << "a sixth would be chance";
}

TEST(PaperTask, ARunThatIsGoneOnWithEqualsOneThatWasNotInterrupted) {
  const TempFolder folder;
  const std::string task =
      " --length 16 --vocab 8 --width 16 --batch 4 --save-every 3 --evaluate-every 7 --schedule "
      "constant --longest 4 --shortest 64";
  const auto at = [&](const char* name) { return "--out " + (folder / name).string() + task; };
  run("induction_heads", at("whole") + " --steps 20");
  const auto cut = run("induction_heads", at("parts") + " --steps 9");
  EXPECT_EQ(cut.back()["step"], 9);
  run("induction_heads", at("parts") + " --steps 20");
  const auto model_of = [&](const char* name) {
    std::ifstream file(folder / name / "checkpoints/step-00000020/model.safetensors", std::ios::binary);
    EXPECT_TRUE(file);
    return std::string{std::istreambuf_iterator<char>(file), {}};
  };
  EXPECT_EQ(model_of("parts"), model_of("whole"));
}

TEST(PaperTask, MinutesEndARunBeforeItsSteps) {
  const TempFolder folder;
  const std::string task =
      "--out " + (folder / "run").string() + " --length 16 --vocab 8 --width 16 --batch 4 --steps 1000000";
  const auto first = run("induction_heads", task + " --minutes 0.005");
  ASSERT_FALSE(first.empty());
  EXPECT_EQ(first.back()["over"], false);
  const auto second = run("induction_heads", task + " --minutes 0.005");
  EXPECT_GT(second.back()["step"], first.back()["step"]);
}

}  // namespace
}  // namespace ssm::test
