// Tokenizer files are hostile input: whatever is in them, the answer is an Error that names the file.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "ssm/core/error.h"
#include "ssm/text/tokenizer.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const json kGood = json::parse(R"({
  "added_tokens": [{"id": 4, "content": "<s>", "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
  "decoder": {"type": "ByteLevel"},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}
})");

std::string error_of(const std::string& text) {
  try {
    parse_tokenizer_json(text, "bad.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// The error after setting the field at a JSON pointer.
std::string error_with(const char* pointer, const json& value) {
  json file = kGood;
  file[json::json_pointer(pointer)] = value;
  return error_of(file.dump());
}

void expect_names(const std::string& error, std::string_view part) {
  EXPECT_TRUE(error.starts_with("bad.json")) << error;
  EXPECT_NE(error.find(part), std::string::npos) << error << "\nlacks " << part;
}

TEST(TokenizerJson, TheGoodOneLoads) {
  const auto tokenizer = parse_tokenizer_json(kGood.dump(), "good.json");
  EXPECT_EQ(tokenizer->encode("abc<s>a"), (std::vector<int32_t>{2, 3, 4, 0}));
  EXPECT_EQ(tokenizer->size(), 5);
}

TEST(TokenizerJson, NamesTheField) {
  expect_names(error_with("/model/type", "Unigram"), "Unigram");
  expect_names(error_with("/model/vocab", json::array({json::array({"a", 0.5})})), "model.vocab");
  expect_names(error_with("/model/vocab/a", -1), "model.vocab[\"a\"]");
  expect_names(error_with("/model/vocab/a", 1), "id 1");
  expect_names(error_with("/model/vocab/a", 1 << 24), "16777216");
  expect_names(error_with("/model/vocab/a", (1 << 24) - 1), "too large");
  expect_names(error_with("/model/vocab/a", "x"), "model.vocab[\"a\"]");
  expect_names(error_with("/model/vocab/a", json::object()), "model.vocab[\"a\"]");
  expect_names(error_with("/model/merges/0", "a c"), "\"ac\"");
  expect_names(error_with("/model/merges/0", "a z"), "\"z\"");
  expect_names(error_with("/model/merges/0", "ab"), "model.merges[0]");
  expect_names(error_with("/model/merges/0", "a b c"), "model.merges[0]");
  expect_names(error_with("/model/merges/0", json::array({"a"})), "model.merges[0]");
  expect_names(error_with("/model/merges/0", json::array({"a", "b", "c"})), "model.merges[0]");
  expect_names(error_with("/model/merges/0", json::array({"a", json::array()})), "model.merges[0]");
  expect_names(error_with("/model/merges/0", 3), "model.merges[0]");
  expect_names(error_with("/model/dropout", 0.1), "dropout");
  expect_names(error_with("/model/unk_token", "nope"), "unk_token");
  expect_names(error_with("/model/fuse_unk", 1), "fuse_unk");
  expect_names(error_with("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix");
  expect_names(error_with("/model", nullptr), "\"model\"");
  expect_names(error_with("/decoder", nullptr), "decoder");
  expect_names(error_with("/decoder/type", "WordPiece"), "WordPiece");
  expect_names(error_with("/normalizer", {{"type", "BertNormalizer"}}), "BertNormalizer");
  expect_names(error_with("/normalizer", "NFC"), "normalizer");
  expect_names(error_with("/pre_tokenizer/type", "Whitespace"), "Whitespace");
  expect_names(error_with("/pre_tokenizer/add_prefix_space", "yes"), "add_prefix_space");
  expect_names(error_with("/added_tokens/0/id", 2), "another token");
  expect_names(error_with("/added_tokens/0/content", "a"), "model.vocab");
  expect_names(error_with("/added_tokens/0/content", 7), "added_tokens[0].content");
  expect_names(error_with("/added_tokens/1", {{"id", 5}, {"content", "<s>"}}), "twice");
}

TEST(TokenizerJson, RefusesRegexesItWouldMisread) {
  const auto error = [](const char* regex) {
    const json split = {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}};
    return error_with("/pre_tokenizer", split);
  };
  expect_names(error("(a"), "bad regex");
  expect_names(error("a\\"), "backslash");
  expect_names(error("\\R"), "\\R");
  expect_names(error("(?m)a"), "option");
  EXPECT_EQ(error("(?i:a)(?=b)(?!c)"), "");
}

TEST(TokenizerJson, ARegexThatTakesForEverIsStopped) {
  json file = kGood;
  file["pre_tokenizer"] = {
      {"type", "Split"}, {"pattern", {{"Regex", "(a|a)*(a|a)*(a|a)*c"}}}, {"behavior", "Isolated"}};
  const auto tokenizer = parse_tokenizer_json(file.dump(), "slow.json");
  EXPECT_THROW(tokenizer->encode(std::string(5000, 'a')), Error);
}

TEST(TokenizerJson, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "[]", "3", "null", "{\"model\":", "\xFF", "{\"a\":1}}", "{'a':1}"}) {
    EXPECT_TRUE(error_of(text).starts_with("bad.json")) << text;
  }
  expect_names(
      error_of(R"({"model": {"vocab": {"a": 0, "a": 1}, "merges": []}, "decoder": {"type": "ByteLevel"}})"),
      "\"a\" twice");
  expect_names(error_of(R"({"model": {"merges": [], "merges": []}})"), "twice");
}

TEST(TokenizerJson, DepthIsNoBomb) {
  const std::string deep(1000000, '[');
  EXPECT_NE(error_of(deep), "");
  expect_names(error_of(R"({"x": )" + deep), "deeper");
  expect_names(error_of(R"({"model": {"vocab": )" + deep), "deeper");
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  expect_names(error_of(objects), "deeper");
}

TEST(TokenizerJson, EveryDamagedFileIsAnErrorOrATokenizer) {
  const std::string good = kGood.dump();
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (int k = 0; k <= i % 3; ++k) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 20 + 1);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 20));
      }
      if (text.empty()) break;
    }
    try {
      const auto tokenizer = parse_tokenizer_json(text, "bad.json");
      tokenizer->decode(tokenizer->encode("abc <s>\xFF"));
    } catch (const Error&) {
    }
  }
}

class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              (std::string("ssm_text_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const char* name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
  }
  fs::path folder_;
};

TEST_F(TokenizerFolder, WithoutATokenizerThereIsNone) { EXPECT_EQ(open_tokenizer(folder_), nullptr); }

TEST_F(TokenizerFolder, MissingPathsAreErrors) { EXPECT_THROW(open_tokenizer(folder_ / "nowhere"), Error); }

TEST_F(TokenizerFolder, SpecialTokensComeFromTheConfigs) {
  write("tokenizer.json", kGood.dump());
  EXPECT_FALSE(open_tokenizer(folder_)->eos());
  write("special_tokens_map.json", R"({"bos_token": "a", "eos_token": "<s>"})");
  EXPECT_EQ(open_tokenizer(folder_)->bos(), 0);
  EXPECT_EQ(open_tokenizer(folder_)->eos(), 4);
  write("tokenizer_config.json", R"({"bos_token": {"content": "b"}, "eos_token": null})");
  EXPECT_EQ(open_tokenizer(folder_)->bos(), 1);
  EXPECT_EQ(open_tokenizer(folder_ / "tokenizer.json")->eos(), 4);
  write("tokenizer_config.json", R"({"bos_token": 3})");
  EXPECT_THROW(open_tokenizer(folder_), Error);
}

TEST_F(TokenizerFolder, RandomBytesAreNoSentencePieceModel) {
  std::mt19937_64 random(9);
  for (int i = 0; i < 200; ++i) {
    std::string bytes;
    for (int k = 0; k < i; ++k) bytes.push_back(static_cast<char>(random()));
    write("tokenizer.model.v3", bytes);
    EXPECT_THROW(open_tokenizer(folder_), Error);
  }
}

TEST(SentencePiece, EveryDamagedModelIsAnErrorOrATokenizer) {
  const fs::path path = fs::path(SSM_SOURCE_DIR) / "../shared/tokenizers/codestral-mamba/tokenizer.model.v3";
  if (!fs::exists(path)) GTEST_SKIP() << "needs " << path;
  std::ifstream file(path, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(file)), {});
  std::mt19937_64 random(11);
  for (int i = 0; i < 60; ++i) {
    std::string bytes = good;
    for (int k = 0; k < 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (i % 4 == 0) bytes.resize(random() % bytes.size());
    if (i % 4 == 1) bytes.back() ^= 1;
    try {
      const auto tokenizer = parse_sentencepiece(bytes, "bad.model");
      tokenizer->decode(tokenizer->encode("Some text, [INST] 你好 \xFF"));
    } catch (const Error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with("bad.model")) << error.what();
    }
  }
}

}  // namespace
}  // namespace ssm::text
