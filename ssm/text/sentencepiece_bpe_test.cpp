// Our merges of SentencePiece models against libsentencepiece itself, on random texts.
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include <fmt/format.h>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "ssm/text/sentencepiece_bpe.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
const fs::path kRoot = SSM_SOURCE_DIR;

std::string read(const fs::path& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

// A word: pieces whole or cut short, characters of all planes, spaces.
std::string random_word(std::mt19937& random, const SentencePieceModel& model) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  std::string word = "\xE2\x96\x81";
  append_utf8(static_cast<int32_t>('a' + below(26)), word);  // the library has no ids for no text
  for (size_t parts = below(8) + below(20) / 19 * 200; parts > 0; --parts) {
    const auto& piece = model.pieces[below(model.pieces.size())];
    switch (below(4)) {
      case 0:
        append_utf8(static_cast<int32_t>(below(2) ? 1 + below(0x2000) : 0x10000 + below(0x20000)), word);
        break;
      case 1:
        for (size_t at = 0, end = below(piece.text.size()); at < end;) {
          const size_t size = utf8_step(piece.text, at).size;
          word += piece.text.substr(at, size);
          at += size;
        }
        break;
      default:
        word += piece.text;
    }
  }
  return word;
}

void expect_the_librarys_ids(const fs::path& path) {
  const std::string bytes = read(path);
  const SentencePieceModel model = read_sentencepiece_model(bytes, path.string());
  const auto ours = SentencePieceBpe::of(model);
  ASSERT_TRUE(ours);
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(bytes).ok());
  std::mt19937 random(5);
  for (int trial = 0; trial < 3000; ++trial) {
    const std::string word = random_word(random, model);
    std::vector<int32_t> ids;
    ours->encode(word, ids);
    std::vector<int> expected;  // without the symbol that the library's normalizer puts first
    ASSERT_TRUE(library.Encode(word.substr(3), &expected).ok());
    ASSERT_EQ(ids, std::vector<int32_t>(expected.begin(), expected.end())) << word;
  }
}

TEST(SentencePieceBpe, IdsAreTheLibrarys) {
  expect_the_librarys_ids(kRoot / "tests/goldens/tokenizers/sentencepiece-bpe.model");
}

TEST(SentencePieceBpe, IdsAreTheLibrarysForCodestral) {
  const fs::path path = kRoot / "../shared/tokenizers/codestral-mamba/tokenizer.model.v3";
  if (!fs::exists(path)) GTEST_SKIP() << "not here: " << path.string();
  expect_the_librarys_ids(path);
}

TEST(SentencePieceBpe, WhatOnlyTheLibraryDoesIsLeftToIt) {
  using Type = SentencePieceType;
  SentencePieceModel model;
  model.is_bpe = model.byte_fallback = true;
  model.pieces.push_back({"<unk>", Type::unknown, 0});
  for (int b = 0; b < 256; ++b) model.pieces.push_back({fmt::format("<0x{:02X}>", b), Type::byte, 0});
  for (const char* text : {"a", "b", "ab"}) model.pieces.push_back({text, Type::normal, 0});
  ASSERT_TRUE(SentencePieceBpe::of(model));
  const auto refused_with = [&](const SentencePieceModel::Piece& piece) {
    SentencePieceModel changed = model;
    changed.pieces.push_back(piece);
    return !SentencePieceBpe::of(changed);
  };
  EXPECT_FALSE(refused_with({"aa", Type::normal, 0}));
  EXPECT_TRUE(refused_with({"ac", Type::normal, 0}));   // c is no piece
  EXPECT_TRUE(refused_with({"ab", Type::normal, -1}));  // twice
  EXPECT_TRUE(refused_with({"ba", Type::unused, 0}));
  EXPECT_TRUE(refused_with({"c", Type::control, 0}));
  EXPECT_TRUE(refused_with({std::string(200, 'a'), Type::normal, 0}));
  SentencePieceModel unigram = model;
  unigram.is_bpe = false;
  EXPECT_FALSE(SentencePieceBpe::of(unigram));
  SentencePieceModel fewer = model;
  fewer.pieces.erase(fewer.pieces.begin() + 1);
  EXPECT_FALSE(SentencePieceBpe::of(fewer));
}

}  // namespace
}  // namespace ssm::text
