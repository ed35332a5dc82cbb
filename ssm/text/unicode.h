// Classes of characters as the reference tokenizers see them, from ICU's properties.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace ssm::text {

// What the GPT-2 pattern tells apart: \p{L}, \p{N}, \s (the White_Space property), and the rest.
enum class CharClass : uint8_t { other, letter, number, space };

CharClass class_of_non_ascii(int32_t code_point);

namespace detail {
constexpr std::array<CharClass, 128> ascii_classes() {
  std::array<CharClass, 128> table{};
  for (int c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= 9 && c <= 13);
    table[static_cast<size_t>(c)] = letter                 ? CharClass::letter
                                    : c >= '0' && c <= '9' ? CharClass::number
                                    : space                ? CharClass::space
                                                           : CharClass::other;
  }
  return table;
}
inline constexpr std::array<CharClass, 128> kAsciiClasses = ascii_classes();
}  // namespace detail

// -1, an ill-formed byte, is `other`.
inline CharClass class_of(int32_t code_point) {
  if (static_cast<uint32_t>(code_point) < 128) return detail::kAsciiClasses[static_cast<size_t>(code_point)];
  return code_point < 0 ? CharClass::other : class_of_non_ascii(code_point);
}

inline bool is_space(int32_t code_point) { return class_of(code_point) == CharClass::space; }
inline bool is_number(int32_t code_point) { return class_of(code_point) == CharClass::number; }
bool is_word(int32_t code_point);         // \w of an added token's single_word
bool is_punctuation(int32_t code_point);  // of the Punctuation pre-tokenizer

// GPT-2's byte-level alphabet: a printable character for every byte, and back.
extern const std::array<uint16_t, 256> kByteToChar;
std::optional<uint8_t> byte_of_char(int32_t code_point);

}  // namespace ssm::text
