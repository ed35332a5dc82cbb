// Ids against those of the Python packages (scripts/make_tokenizer_goldens.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ssm/text/tokenizer.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kRoot = SSM_SOURCE_DIR;

json golden(const char* name) {
  const fs::path path = kRoot / "tests/goldens/tokenizers" / name;
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  return json::parse(file);
}

void expect_ids(const Tokenizer& tokenizer, const json& texts, const json& ids) {
  ASSERT_EQ(texts.size(), ids.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(texts[i].get<std::string>()), ids[i].get<std::vector<int32_t>>()) << texts[i];
  }
}

void expect_round_trips(const Tokenizer& tokenizer, const json& texts) {
  for (const auto& text : texts) {
    const auto ids = tokenizer.encode(text.get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids), text.get<std::string>());
  }
}

TEST(Golden, BundledTokenizer) {
  const auto tokenizer = open_tokenizer(kRoot / "models/tale-10m");
  ASSERT_TRUE(tokenizer);
  const json expected = golden("bundled.json");
  expect_ids(*tokenizer, expected["texts"], expected["ids"]);
  expect_round_trips(*tokenizer, expected["texts"]);
  EXPECT_EQ(tokenizer->size(), 6144);
  EXPECT_EQ(tokenizer->bos(), 0);
  EXPECT_EQ(tokenizer->eos(), 0);
}

TEST(Golden, GptNeox) {
  const fs::path path = kRoot / "../shared/tokenizers/gpt-neox-20b/tokenizer.json";
  if (!fs::exists(path)) GTEST_SKIP() << "needs GPT-NeoX's tokenizer.json at " << path;
  const json expected = golden("gpt-neox-20b.json");
  const auto tokenizer = open_tokenizer(path);
  expect_ids(*tokenizer, expected["texts"], expected["ids"]);
  EXPECT_EQ(tokenizer->size(), 50277);
}

TEST(Golden, Codestral) {
  const fs::path folder = kRoot / "../shared/tokenizers/codestral-mamba";
  if (!fs::exists(folder)) GTEST_SKIP() << "needs Codestral's tokenizer.model.v3 in " << folder;
  const json expected = golden("codestral-mamba.json");
  const auto tokenizer = open_tokenizer(folder);
  ASSERT_TRUE(tokenizer);
  expect_ids(*tokenizer, expected["texts"], expected["ids"]);
  EXPECT_EQ(tokenizer->size(), 32768);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_EQ(tokenizer->eos(), 2);
  for (const auto& text : expected["texts"]) {
    const auto s = text.get<std::string>();
    if (s.find("\u2581") != s.npos) continue;  // SentencePiece's own sign for a space
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(s)), s);
  }
}

TEST(Golden, SmallSentencePieceModels) {
  for (const std::string kind : {"bpe", "unigram"}) {
    SCOPED_TRACE(kind);
    const auto tokenizer =
        open_tokenizer(kRoot / "tests/goldens/tokenizers" / ("sentencepiece-" + kind + ".model"));
    const json expected = golden(("sentencepiece-" + kind + ".json").c_str());
    expect_ids(*tokenizer, expected["texts"], expected["ids"]);
    for (const std::string text :
         {"the cat", "  a  hat ", "[INST] the\n[/INST]\n\n x", " ", "\xFFthe\xE2\x82"}) {
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    }
  }
}

// "model.unk_token": null and the like.
void apply_patch(json& target, const json& patch) {
  for (const auto& [path, value] : patch.items()) {
    std::string pointer = "/" + path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    target[json::json_pointer(pointer)] = value;
  }
}

TEST(Golden, EveryPartOfATokenizerJson) {
  const json all = golden("synthetic.json");
  EXPECT_GT(all["configurations"].size(), 50u);
  for (const auto& configuration : all["configurations"]) {
    const auto name = configuration["name"].get<std::string>();
    SCOPED_TRACE(name);
    json file = all["bases"][configuration["base"].get<std::string>()];
    apply_patch(file, configuration["patch"]);
    const auto tokenizer = parse_tokenizer_json(file.dump(), name);
    expect_ids(*tokenizer, all["texts"], configuration["ids"]);
  }
}

}  // namespace
}  // namespace ssm::text
