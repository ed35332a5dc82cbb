// `ssm tokenizer train` as a user runs it: what it writes is what `ssm tokenize` reads.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string contents(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

fs::path write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string some_text() {
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += "the cat and the hat sat on the mat, " + std::to_string(i * i) + " times\n";
  return text;
}

TEST(CommandTokenizer, TrainsWhatTokenizeReads) {
  const TempFolder folder;
  const fs::path text = write(folder / "a.txt", some_text());
  const std::string out = folder / "tok";
  const CommandResult made = ssm({"tokenizer", "train", text, "--vocab-size", "300", "--out", out,
                                  "--special-token", "<|end|>", "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_EQ(made.json(), (Json{{"path", out + "/tokenizer.json"},
                               {"tokens", 300},
                               {"merges", 43},
                               {"bytes", some_text().size()}}));
  const Json ids = ssm({"tokenize", "--tokenizer", out, "--json"}, "the cat<|end|>").json()["ids"];
  EXPECT_EQ(ids.size(), 3u) << ids << ": the, cat, the special token";
  EXPECT_EQ(ids[2], 0);
  const CommandResult text_again =
      ssm({"tokenize", "--tokenizer", out, "--decode", "--tokens", joined(ids.get<std::vector<int32_t>>())});
  EXPECT_EQ(text_again.out, "the cat<|end|>");
  EXPECT_EQ(Json::parse(contents(out + "/tokenizer_config.json"))["eos_token"], "<|end|>");

  const std::string again = folder / "again";
  ASSERT_EQ(ssm({"tokenizer", "train", text, "--vocab-size", "300", "--out", again, "--special-token",
                 "<|end|>", "--threads", "3"})
                .code,
            0);
  EXPECT_EQ(contents(out + "/tokenizer.json"), contents(again + "/tokenizer.json"));
}

TEST(CommandTokenizer, ReadsColumnsAndFolders) {
  const TempFolder folder;
  fs::create_directory(folder / "data");
  write(folder / "data/a.csv", "quote,other\n\"xyzzy, xyzzy\",abcabcabcabc\n");
  write(folder / "data/b.jsonl", "{\"quote\":\"xyzzy\"}\n");
  const CommandResult made = ssm({"tokenizer", "train", folder / "data", "--column", "quote", "--vocab-size",
                                  "1000", "--out", folder / "tok"});
  ASSERT_EQ(made.code, 0);
  EXPECT_NE(made.err.find("warning: 261 tokens instead of 1000: no other pair is there 2 times"),
            std::string::npos)
      << made.err;
  EXPECT_EQ(made.out,
            (folder / "tok/tokenizer.json").string() + ": 261 tokens, 4 merges, of 17 bytes of text\n");
}

void expect_refusal(int code, const std::string& part, const std::vector<std::string>& arguments) {
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, code);
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

TEST(CommandTokenizer, AFlagThatRepeatsTakesOneValueEach) {
  const TempFolder folder;
  const std::string text = write(folder / "a.txt", "one two one two one two");
  const CommandResult result = ssm({"tokenizer", "train", "--vocab-size", "300", "--out", folder / "tok",
                                    "--special-token", "<|a|>", "--special-token", "<|b|>", text, "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(ssm({"tokenize", "--tokenizer", folder / "tok"}, "<|b|><|a|>").out, "1,0\n");
}

TEST(CommandTokenizer, Failures) {
  const TempFolder folder;
  const std::string out = folder / "tok", bad = write(folder / "bad.jsonl", "{\"text\":1}\n");
  expect_refusal(2, "--vocab-size", {"tokenizer", "train", bad, "--out", out});
  expect_refusal(2, "--vocab-size", {"tokenizer", "train", bad, "--out", out, "--vocab-size", "200"});
  expect_refusal(2, "FILES", {"tokenizer", "train", "--out", out, "--vocab-size", "300"});
  expect_refusal(2, "subcommand", {"tokenizer"});
  expect_refusal(1, "bad.jsonl:1: field \"text\" is not a string",
                 {"tokenizer", "train", bad, "--out", out, "--vocab-size", "300"});
  expect_refusal(1, "none.txt: no such file or folder",
                 {"tokenizer", "train", folder / "none.txt", "--out", out, "--vocab-size", "300"});
  expect_refusal(2, "is shorter than two bytes",
                 {"tokenizer", "train", bad, "--out", out, "--vocab-size", "300", "--special-token", "x"});
  EXPECT_FALSE(fs::exists(out + "/tokenizer.json"));
  const CommandResult help = ssm({"tokenizer", "train", "--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_NE(help.out.find("--min-frequency"), std::string::npos) << help.out;
}

}  // namespace
}  // namespace ssm::test
