// Tokenizers as GGUF carries them, against the ids of the Python packages for the files they were made of.
#include "ssm/text/ggml_tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"
#include "ssm/text/sentencepiece_model.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::expect_error;

const fs::path kGoldens = fs::path(SSM_SOURCE_DIR) / "tests/goldens/tokenizers";
const fs::path kShared = fs::path(SSM_SOURCE_DIR) / "../shared/tokenizers";
const fs::path kBundled = fs::path(SSM_SOURCE_DIR) / "models/tale-8m";

json golden(const std::string& name) {
  std::ifstream file(kGoldens / name);
  EXPECT_TRUE(file) << name;
  return json::parse(file);
}

void expect_ids(const Tokenizer& tokenizer, const json& texts, const json& ids) {
  ASSERT_EQ(texts.size(), ids.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(tokenizer.encode(texts[i].get<std::string>()), ids[i].get<std::vector<int32_t>>()) << texts[i];
  }
}

// As a GGUF writer leaves it, its list filled up to a multiple.
GgmlTokenizer padded(GgmlTokenizer tokenizer, size_t multiple) {
  while (tokenizer.tokens.size() % multiple != 0) {
    tokenizer.tokens.push_back(fmt::format("[PAD{}]", tokenizer.tokens.size()));
    tokenizer.types.push_back(5);
    if (!tokenizer.scores.empty()) tokenizer.scores.push_back(-10000);
  }
  return tokenizer;
}

// The ids, through the GGUF form and through the files that this becomes again.
void expect_same(const fs::path& path, const std::string& golden_name, int64_t size) {
  const json expected = golden(golden_name);
  const GgmlTokenizer ggml = padded(read_ggml_tokenizer(path).value(), 1024);
  const auto tokenizer = make_tokenizer(ggml, "a.gguf");
  expect_ids(*tokenizer, expected["texts"], expected["ids"]);
  const auto original = open_tokenizer(path);
  EXPECT_EQ(tokenizer->size(), size);
  EXPECT_EQ(tokenizer->bos(), original->bos());
  EXPECT_EQ(tokenizer->eos(), original->eos());
  for (int32_t id = 0; id < size; ++id) ASSERT_EQ(tokenizer->bytes_of(id), original->bytes_of(id)) << id;
  const test::TempFolder folder;
  for (const auto& [name, bytes] : tokenizer_files(ggml, "a.gguf"))
    std::ofstream(folder / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const auto again = open_tokenizer(folder.path());
  expect_ids(*again, expected["texts"], expected["ids"]);
  EXPECT_EQ(again->size(), size);
  EXPECT_EQ(again->bos(), original->bos());
  EXPECT_EQ(again->eos(), original->eos());
}

TEST(GgmlTokenizer, Bundled) {
  expect_same(kBundled, "bundled.json", 6144);
  EXPECT_EQ(read_ggml_tokenizer(kBundled)->pre, "gpt-2");
}

TEST(GgmlTokenizer, GptNeox) {
  const fs::path path = kShared / "gpt-neox-20b/tokenizer.json";
  if (!fs::exists(path)) GTEST_SKIP() << "needs GPT-NeoX's tokenizer.json at " << path;
  expect_same(path, "gpt-neox-20b.json", 50277);
  GgmlTokenizer ggml = read_ggml_tokenizer(path).value();
  EXPECT_EQ(ggml.pre, "olmo");
  const json expected = golden("gpt-neox-20b.json");
  for (const char* other : {"mpt", "", "default"}) {
    ggml.pre = other;
    expect_ids(*make_tokenizer(ggml, "a.gguf"), expected["texts"], expected["ids"]);
  }
}

TEST(GgmlTokenizer, Codestral) {
  const fs::path path = kShared / "codestral-mamba/tokenizer.model.v3";
  if (!fs::exists(path)) GTEST_SKIP() << "needs Codestral's tokenizer.model.v3 at " << path;
  expect_same(path, "codestral-mamba.json", 32768);
  // As llama.cpp's converter writes it.
  GgmlTokenizer ggml = read_ggml_tokenizer(path).value();
  for (int32_t& type : ggml.types) type = type == 4 ? 1 : type;
  const json expected = golden("codestral-mamba.json");
  const auto tokenizer = make_tokenizer(ggml, "a.gguf");
  expect_ids(*tokenizer, expected["texts"], expected["ids"]);
  EXPECT_EQ(tokenizer->encode("a[REFERENCE_DOC_3]"), open_tokenizer(path)->encode("a[REFERENCE_DOC_3]"));
}

TEST(GgmlTokenizer, SmallSentencePieceModels) {
  expect_same(kGoldens / "sentencepiece-bpe.model", "sentencepiece-bpe.json",
              open_tokenizer(kGoldens / "sentencepiece-bpe.model")->size());
}

// Written by hand: read_ggml_tokenizer makes none of a unigram model.
TEST(GgmlTokenizer, ScoresThatAreNoRanksAreUnigram) {
  std::ifstream in(kGoldens / "sentencepiece-unigram.model", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  GgmlTokenizer ggml;
  ggml.kind = "llama";
  for (const auto& piece : read_sentencepiece_model(bytes, "unigram").pieces) {
    ggml.tokens.push_back(piece.text);
    ggml.types.push_back(static_cast<int32_t>(piece.type));
    ggml.scores.push_back(piece.score);
  }
  const json expected = golden("sentencepiece-unigram.json");
  expect_ids(*make_tokenizer(ggml, "a.gguf"), expected["texts"], expected["ids"]);
}

// Each name's pieces around the bundled vocabulary.
TEST(GgmlTokenizer, PreTokenizersByName) {
  const json expected = golden("pre_tokenizers.json");
  GgmlTokenizer ggml = read_ggml_tokenizer(kBundled).value();
  for (const auto& [name, ids] : expected["ids"].items()) {
    SCOPED_TRACE(name);
    ggml.pre = name;
    expect_ids(*make_tokenizer(ggml, "a.gguf"), expected["texts"], ids);
  }
  EXPECT_EQ(expected["ids"].size(), 8u);
}

TEST(GgmlTokenizer, NamesWhatItDoesNotKnow) {
  const GgmlTokenizer good = read_ggml_tokenizer(kBundled).value();
  const auto refuse = [&](const std::function<void(GgmlTokenizer&)>& change, const std::string& part) {
    GgmlTokenizer bad = good;
    change(bad);
    expect_error([&] { make_tokenizer(bad, "a.gguf"); }, {fmt::format("a.gguf: {}", part)});
  };
  refuse([](auto& t) { t.kind = "bert"; }, "key tokenizer.ggml.model is \"bert\"");
  refuse([](auto& t) { t.pre = "tekken"; }, "key tokenizer.ggml.pre is \"tekken\"");
  refuse([](auto& t) { t.tokens.clear(); }, "key tokenizer.ggml.tokens is missing");
  refuse([](auto& t) { t.types.pop_back(); }, "key tokenizer.ggml.token_type has 6143 items");
  refuse([](auto& t) { t.merges[3] = "ab"; }, "key tokenizer.ggml.merges: item 3");
  refuse([](auto& t) { t.merges[3] = "zzzzz y"; }, "model.merges[3]");
  refuse([](auto& t) { t.tokens[7].assign(1, '\xFF'); }, "key tokenizer.ggml.tokens: item 7 is not UTF-8");
  refuse([](auto& t) { t.tokens[700] = t.tokens[701]; }, "model.vocab has");
  refuse([](auto& t) { t.kind = "llama"; }, "key tokenizer.ggml.scores is missing");
  refuse([](auto& t) { t.kind = "llama", t.scores.resize(3); }, "key tokenizer.ggml.scores has 3 items");
  refuse([](auto& t) { t.kind = "llama", t.scores.resize(t.tokens.size()), t.types[9] = 7; },
         "key tokenizer.ggml.token_type: item 9 is 7");
}

TEST(GgmlTokenizer, NamesWhatGgufCannotSay) {
  expect_error([] { read_ggml_tokenizer(kGoldens / "sentencepiece-unigram.model"); }, {"unigram"});
  const test::TempFolder folder;
  EXPECT_FALSE(read_ggml_tokenizer(folder.path()));
  std::ifstream in(kBundled / "tokenizer.json");
  const json good = json::parse(in);
  const auto refuse = [&](const std::string& pointer, const json& value, const std::string& part) {
    json bad = good;
    bad[json::json_pointer(pointer)] = value;
    std::ofstream(folder / "tokenizer.json") << bad.dump();
    expect_error([&] { read_ggml_tokenizer(folder.path()); }, {part});
  };
  refuse("/normalizer", {{"type", "NFD"}}, "normalizer and pre_tokenizer: GGUF has no name");
  refuse("/pre_tokenizer/add_prefix_space", true, "normalizer and pre_tokenizer");
  refuse("/added_tokens/0/lstrip", true, "added_tokens[0].lstrip");
  refuse("/model/byte_fallback", true, "model.byte_fallback");
}

}  // namespace
}  // namespace ssm::text
