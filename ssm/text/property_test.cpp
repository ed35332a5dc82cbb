// What must hold of every text: decode(encode(x)) == x, streams, and time that grows with the length only.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "ssm/core/error.h"
#include "ssm/text/tokenizer.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

namespace fs = std::filesystem;
using Random = std::mt19937_64;

const fs::path kRoot = SSM_SOURCE_DIR;
const fs::path kCodestral = kRoot / "../shared/tokenizers/codestral-mamba";

const Tokenizer& bundled() {
  static const auto tokenizer = open_tokenizer(kRoot / "models/tale-10m");
  return *tokenizer;
}

size_t below(Random& random, size_t n) { return static_cast<size_t>(random() % n); }

std::string random_characters(Random& random, size_t count) {
  std::string text;
  while (count > 0) {
    const auto c = static_cast<int32_t>(below(random, below(random, 2) ? 0x110000 : 0x3000));
    if (c >= 0xD800 && c < 0xE000) continue;
    append_utf8(c, text);
    --count;
  }
  return text;
}

std::string random_bytes(Random& random, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text.push_back(static_cast<char>(random()));
  return text;
}

std::string random_mix(Random& random) {
  static const std::vector<std::string> kParts = {
      " ",           "  ",   "\n",     "\t",          "the ", " don't", "123",     "<|endoftext|>",
      "[INST]",      "</s>", "<s>",    "\x80",        "\xE2", "é",      "e\u0301", "你好",
      "👩‍👧", "\r\n", "<0x0A>", "\xEF\xBB\xBF"};
  std::string text;
  for (size_t n = below(random, 12) + 1; n > 0; --n) {
    switch (below(random, 4)) {
      case 0:
        text += random_bytes(random, below(random, 4));
        break;
      case 1:
        text += random_characters(random, below(random, 6));
        break;
      default:
        text += kParts[below(random, kParts.size())];
    }
  }
  return text;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool at_start) {
  StreamDecoder decoder(tokenizer, at_start);
  std::string out;
  for (const int32_t id : ids) {
    const std::string piece = decoder.push(id);
    EXPECT_TRUE(is_utf8(piece)) << "a piece that is not UTF-8";
    out += piece;
  }
  return out + decoder.finish();
}

void expect_lossless(const Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  ASSERT_EQ(tokenizer.decode(ids), text) << testing::PrintToString(text);
  const std::string streamed = stream(tokenizer, ids, true);
  if (is_utf8(text)) {
    ASSERT_EQ(streamed, text);
  } else {
    ASSERT_TRUE(is_utf8(streamed));
  }
}

TEST(RoundTrip, EveryTextOnTheBundledTokenizer) {
  Random random(1);
  for (int i = 0; i < 3000; ++i) {
    expect_lossless(bundled(), random_mix(random));
    expect_lossless(bundled(), random_bytes(random, below(random, 40)));
    expect_lossless(bundled(), random_characters(random, below(random, 40)));
  }
}

TEST(RoundTrip, EveryTextOnCodestral) {
  if (!fs::exists(kCodestral)) GTEST_SKIP() << "needs Codestral's tokenizer.model.v3 in " << kCodestral;
  const auto tokenizer = open_tokenizer(kCodestral);
  Random random(2);
  for (int i = 0; i < 1000; ++i) {
    for (const std::string& text :
         {random_mix(random), random_bytes(random, 20), random_characters(random, 20)}) {
      if (text.find("\u2581") == text.npos) expect_lossless(*tokenizer, text);
    }
  }
}

TEST(Stream, GivesOutOnlyWholeCharacters) {
  Random random(3);
  for (int i = 0; i < 2000; ++i) {
    std::vector<int32_t> ids;
    for (size_t n = below(random, 30); n > 0; --n) ids.push_back(static_cast<int32_t>(below(random, 6144)));
    const std::string whole = bundled().decode(ids);
    const std::string streamed = stream(bundled(), ids, true);
    ASSERT_TRUE(is_utf8(streamed));
    if (is_utf8(whole)) {
      ASSERT_EQ(streamed, whole);
    }
  }
}

int32_t byte_token(const std::string& spelling) {
  const auto id = bundled().find(spelling);
  EXPECT_TRUE(id) << spelling;
  return id.value_or(0);
}

TEST(Stream, HoldsBackWhatMayBecomeACharacter) {
  const int32_t e2 = byte_token("â"), byte_82 = byte_token("Ĥ"), ac = byte_token("¬"), a = byte_token("a");
  StreamDecoder euro(bundled());
  EXPECT_EQ(euro.push(e2), "");
  EXPECT_EQ(euro.push(byte_82), "");
  EXPECT_EQ(euro.push(ac), "€");
  EXPECT_EQ(euro.push(e2), "");
  EXPECT_EQ(euro.push(a), "\uFFFDa");  // certain now
  EXPECT_EQ(euro.push(ac), "\uFFFD");  // begins nothing
  EXPECT_EQ(euro.push(e2), "");
  EXPECT_EQ(euro.push(byte_82), "");
  EXPECT_EQ(euro.finish(), "\uFFFD\uFFFD");
  EXPECT_EQ(euro.finish(), "");
}

TEST(Stream, AContinuationKeepsItsSpaces) {
  if (!fs::exists(kCodestral)) GTEST_SKIP() << "needs Codestral's tokenizer.model.v3 in " << kCodestral;
  const auto tokenizer = open_tokenizer(kCodestral);
  const auto ids = tokenizer->encode("one two  three");
  EXPECT_EQ(stream(*tokenizer, ids, false), " one two  three");
  EXPECT_EQ(stream(*tokenizer, ids, true), "one two  three");
  const auto chat = tokenizer->encode("<s>[INST] a [/INST]b</s>");
  EXPECT_EQ(tokenizer->decode(chat), "<s>[INST] a [/INST]b</s>");
  EXPECT_EQ(chat.front(), tokenizer->bos());
  EXPECT_EQ(chat.back(), tokenizer->eos());
}

TEST(Decode, NamesAnUnknownId) {
  for (const int32_t id : {-1, 6144, 1 << 30}) {
    try {
      bundled().decode(std::vector<int32_t>{id});
      FAIL() << id;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(id)), std::string::npos);
    }
  }
}

TEST(Encode, LongRunsTakeNoMoreThanTheirLength) {
  std::ifstream file(kRoot / "models/tale-10m/tokenizer.json");
  auto json = nlohmann::json::parse(file);
  json["normalizer"] = {{"type", "NFC"}};
  const auto with_nfc = parse_tokenizer_json(json.dump(), "bundled with NFC");
  std::string marks;
  for (int i = 0; i < 250000; ++i) marks += i % 2 ? "\u0315" : "\u0323";
  const auto begin = std::chrono::steady_clock::now();
  for (const std::string& text :
       {std::string(1000000, 'a'), std::string(1000000, ' '), std::string(1000000, '\xE2')}) {
    EXPECT_EQ(bundled().decode(bundled().encode(text)), text);
  }
  EXPECT_FALSE(with_nfc->encode("a" + marks).empty());
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(taken.count(), 30.0);  // quadratic: hours
}

}  // namespace
}  // namespace ssm::text
