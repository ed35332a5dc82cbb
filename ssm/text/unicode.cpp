#include "ssm/text/unicode.h"

#include <unicode/uchar.h>

namespace ssm::text {
namespace {

constexpr uint32_t kPunctuationMask = U_GC_P_MASK;
constexpr uint32_t kMarkMask = U_GC_M_MASK;

constexpr std::array<uint16_t, 256> byte_alphabet() {
  std::array<uint16_t, 256> table{};
  uint16_t next = 256;
  for (size_t b = 0; b < 256; ++b) {
    const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    table[b] = printable ? static_cast<uint16_t>(b) : next++;
  }
  return table;
}

constexpr std::array<int16_t, 512> byte_alphabet_inverse() {
  std::array<int16_t, 512> table{};
  for (auto& b : table) b = -1;
  for (size_t b = 0; b < 256; ++b) table[byte_alphabet()[b]] = static_cast<int16_t>(b);
  return table;
}
constexpr std::array<int16_t, 512> kCharToByte = byte_alphabet_inverse();

}  // namespace

const std::array<uint16_t, 256> kByteToChar = byte_alphabet();

std::optional<uint8_t> byte_of_char(int32_t code_point) {
  if (code_point < 0 || code_point >= 512) return std::nullopt;
  const int16_t byte = kCharToByte[static_cast<size_t>(code_point)];
  return byte < 0 ? std::nullopt : std::optional(static_cast<uint8_t>(byte));
}

CharClass class_of_non_ascii(int32_t code_point) {
  const uint32_t mask = U_MASK(u_charType(code_point));
  if (mask & U_GC_L_MASK) return CharClass::letter;
  if (mask & U_GC_N_MASK) return CharClass::number;
  return u_isUWhiteSpace(code_point) ? CharClass::space : CharClass::other;
}

bool is_word(int32_t code_point) {
  if (code_point < 0) return false;
  const uint32_t mask = U_MASK(u_charType(code_point));
  return (mask & (kMarkMask | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 || u_isUAlphabetic(code_point) ||
         u_hasBinaryProperty(code_point, UCHAR_JOIN_CONTROL);
}

bool is_punctuation(int32_t code_point) {
  if (code_point < 0) return false;
  if (code_point < 128) return code_point > 32 && code_point < 127 && !u_isalnum(code_point);
  // The reference's table is Unicode 8's, which had these two as punctuation.
  if (code_point == 0x166D || code_point == 0x111C9) return true;
  if ((U_MASK(u_charType(code_point)) & kPunctuationMask) == 0) return false;
  UVersionInfo age;
  u_charAge(code_point, age);
  return age[0] <= 8;
}

}  // namespace ssm::text
