// Our classes of characters against the `tokenizers` package's (scripts/make_unicode_table.py).
#include "ssm/text/unicode.h"

#include <gtest/gtest.h>
#include <unicode/uchar.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "ssm/text/gpt2_scanner.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

constexpr int32_t kCodePoints = 0x110000;

std::map<std::string, std::vector<bool>> read_table() {
  std::ifstream file(SSM_SOURCE_DIR "/tests/goldens/tokenizers/unicode_classes.txt");
  std::map<std::string, std::vector<bool>> table;
  std::string name;
  int32_t first = 0, last = 0;
  while (file >> name >> std::hex >> first >> last) {
    auto& members = table[name];
    members.resize(kCodePoints);
    for (int32_t c = first; c <= last; ++c) members[static_cast<size_t>(c)] = true;
  }
  return table;
}

// Assigned in this ICU's Unicode, and in Unicode 15, which the packages know too.
bool is_compared(int32_t c) {
  UVersionInfo age;
  u_charAge(c, age);
  return !U_IS_SURROGATE(c) && age[0] > 0 && age[0] <= 15;
}

TEST(Unicode, EveryCharacterHasTheReferencesClass) {
  const auto table = read_table();
  ASSERT_EQ(table.size(), 4u);
  int compared = 0;
  for (int32_t c = 0; c < kCodePoints; ++c) {
    if (!is_compared(c)) continue;
    ++compared;
    const auto in = [&](const char* name) {
      return static_cast<bool>(table.at(name)[static_cast<size_t>(c)]);
    };
    const CharClass expected = in("letter")   ? CharClass::letter
                               : in("number") ? CharClass::number
                               : in("space")  ? CharClass::space
                                              : CharClass::other;
    ASSERT_EQ(static_cast<int>(class_of(c)), static_cast<int>(expected)) << std::hex << c;
    ASSERT_EQ(is_punctuation(c), in("punctuation")) << std::hex << c;
  }
  EXPECT_GT(compared, 280000);
}

TEST(Unicode, TheByteAlphabetIsGpt2s) {
  EXPECT_EQ(kByteToChar[' '], 0x120);
  EXPECT_EQ(kByteToChar['\n'], 0x10A);
  EXPECT_EQ(kByteToChar['!'], '!');
  EXPECT_EQ(kByteToChar[0xAD], 0x143);
  for (size_t b = 0; b < 256; ++b) EXPECT_EQ(byte_of_char(kByteToChar[b]), b);
  EXPECT_FALSE(byte_of_char(' '));
  EXPECT_FALSE(byte_of_char(-1));
}

TEST(Utf8, StepsForwardAndBackOverEveryCharacter) {
  for (int32_t c = 0; c < kCodePoints; ++c) {
    if (U_IS_SURROGATE(c)) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Step step = utf8_step(text, 0);
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.size, text.size());
    ASSERT_EQ(utf8_step_back("a" + text, text.size() + 1).code_point, c);
  }
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xFF"}) {
    EXPECT_EQ(utf8_step(bad, 0).code_point, -1);
    EXPECT_EQ(utf8_step(bad, 0).size, 1u);
  }
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = gpt2_match_end(text, at);
    words.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

TEST(Gpt2Scanner, CutsAsThePatternDoes) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(words_of("I've 2 dogs''re"), (Words{"I", "'ve", " 2", " dogs", "''", "re"}));
  EXPECT_EQ(words_of("a  b \n"), (Words{"a", " ", " b", " \n"}));
  EXPECT_EQ(words_of("  'll ll'"), (Words{" ", " '", "ll", " ll", "'"}));
  EXPECT_EQ(words_of("\xC2\xA0x\t\ty"), (Words{"\xC2\xA0", "x", "\t", "\t", "y"}));
  EXPECT_EQ(words_of(" "), (Words{" "}));
  EXPECT_EQ(words_of("x\x80\xFF 1"), (Words{"x", "\x80\xFF", " 1"}));
}

}  // namespace
}  // namespace ssm::text
