// UTF-8 one character at a time; bytes that form no character are steps of their own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ssm::text {

struct Utf8Step {
  int32_t code_point;  // -1: the byte begins no well-formed character
  uint32_t size;       // in bytes, 1 for such a byte
};

// How many bytes a character beginning with `lead` has; 0: no character begins so.
inline uint32_t utf8_length(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// Whether `second` may follow `lead`: this one rule excludes surrogates, overlong forms and > U+10FFFF.
inline bool utf8_second_byte(uint8_t lead, uint8_t second) {
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

inline Utf8Step utf8_step(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const uint32_t size = utf8_length(lead);
  if (size == 0 || text.size() - at < size || !utf8_second_byte(lead, byte(1))) return {-1, 1};
  int32_t code_point = lead & (0x7F >> size);
  for (uint32_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {-1, 1};
    code_point = (code_point << 6) | (byte(i) & 0x3F);
  }
  return {code_point, size};
}

// npos: all of `text` is UTF-8.
inline size_t first_bad_byte(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.code_point < 0) return at;
    at += step.size;
  }
  return text.npos;
}

inline bool is_utf8(std::string_view text) { return first_bad_byte(text) == text.npos; }

// The character that ends right before `at` (> 0).
inline Utf8Step utf8_step_back(std::string_view text, size_t at) {
  for (uint32_t size = 1; size <= 4 && size <= at; ++size) {
    if ((static_cast<uint8_t>(text[at - size]) & 0xC0) == 0x80) continue;
    const Utf8Step step = utf8_step(text.substr(0, at), at - size);
    if (step.size == size) return step;
    break;
  }
  return {-1, 1};
}

inline void append_utf8(int32_t code_point, std::string& out) {
  const auto put = [&](int32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | (code_point >> 6));
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | (code_point >> 12));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | (code_point >> 18));
    put(0x80 | ((code_point >> 12) & 0x3F));
    put(0x80 | ((code_point >> 6) & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

}  // namespace ssm::text
