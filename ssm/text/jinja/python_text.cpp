#include "ssm/text/jinja/python_text.h"

#include <fmt/format.h>
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "ssm/core/error.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text::jinja {
namespace {

// str.isspace: White_Space and the four separators of ASCII.
bool is_python_space(int32_t c) { return is_space(c) || (c >= 0x1C && c <= 0x1F); }

bool is_line_end(int32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

template <class Change>
std::string changed(std::string_view text, const Change& change) {
  icu::UnicodeString wide = icu::UnicodeString::fromUTF8({text.data(), static_cast<int32_t>(text.size())});
  change(wide);
  std::string result;
  wide.toUTF8String(result);
  return result;
}

bool is_printable(int32_t c) {
  if (c == ' ') return true;
  switch (u_charType(c)) {
    case U_UNASSIGNED:
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_PRIVATE_USE_CHAR:
    case U_SURROGATE:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
    case U_SPACE_SEPARATOR:
      return false;
    default:
      return true;
  }
}

std::string escaped(int32_t c) {
  return c < 0x100     ? fmt::format("\\x{:02x}", c)
         : c < 0x10000 ? fmt::format("\\u{:04x}", c)
                       : fmt::format("\\U{:08x}", c);
}

std::string json_escaped(int32_t c) {
  if (c < 0x10000) return fmt::format("\\u{:04x}", c);
  const int32_t low = c - 0x10000;
  return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (low >> 10), 0xDC00 + (low & 0x3FF));
}

// Between runs of white space, the first `limit` of them from one end.
std::vector<std::string_view> split_at_spaces(std::string_view text, int64_t limit, bool from_right) {
  std::vector<std::string_view> parts;
  const Side near = from_right ? Side::right : Side::left;
  for (std::string_view rest = strip(text, std::nullopt, near); !rest.empty();
       rest = strip(rest, std::nullopt, near)) {
    if (limit >= 0 && std::ssize(parts) == limit) {
      parts.push_back(rest);
      break;
    }
    size_t at = from_right ? rest.size() : 0;
    while (from_right ? at > 0 : at < rest.size()) {
      const Utf8Step step = from_right ? utf8_step_back(rest, at) : utf8_step(rest, at);
      if (is_python_space(step.code_point)) break;
      at = from_right ? at - step.size : at + step.size;
    }
    parts.push_back(from_right ? rest.substr(at) : rest.substr(0, at));
    rest = from_right ? rest.substr(0, at) : rest.substr(at);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

int64_t length_of(std::string_view text) {
  int64_t n = 0;
  for (size_t at = 0; at < text.size(); at += utf8_step(text, at).size) ++n;
  return n;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> result;
  for (size_t at = 0; at < text.size(); at += result.back().size()) {
    result.push_back(text.substr(at, utf8_step(text, at).size));
  }
  return result;
}

std::string_view strip(std::string_view text, std::optional<std::string_view> chars, Side side) {
  const auto goes = [&](const Utf8Step& step, size_t at) {
    if (!chars) return is_python_space(step.code_point);
    for (size_t i = 0; i < chars->size(); i += utf8_step(*chars, i).size) {
      if (chars->substr(i, utf8_step(*chars, i).size) == text.substr(at, step.size)) return true;
    }
    return false;
  };
  while (side != Side::right && !text.empty()) {
    const Utf8Step step = utf8_step(text, 0);
    if (!goes(step, 0)) break;
    text.remove_prefix(step.size);
  }
  while (side != Side::left && !text.empty()) {
    const Utf8Step step = utf8_step_back(text, text.size());
    if (!goes(step, text.size() - step.size)) break;
    text.remove_suffix(step.size);
  }
  return text;
}

std::string upper(std::string_view text) {
  return changed(text, [](icu::UnicodeString& s) { s.toUpper(icu::Locale::getRoot()); });
}
std::string lower(std::string_view text) {
  return changed(text, [](icu::UnicodeString& s) { s.toLower(icu::Locale::getRoot()); });
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const size_t first = utf8_step(text, 0).size;
  return upper(text.substr(0, first)) + lower(text.substr(first));
}

std::string title_filter(std::string_view text) {
  std::string result;
  bool begins = true;
  size_t word = 0;
  const auto put = [&](size_t end) { result += capitalize(text.substr(word, end - word)); };
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    const bool between =
        is_python_space(step.code_point) ||
        (step.size == 1 && std::string_view("-({[<").find(text[at]) != std::string_view::npos);
    if (between != begins) {
      put(at);
      word = at;
      begins = between;
    }
    at += step.size;
  }
  put(text.size());
  return result;
}

std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator,
                                    int64_t limit, bool from_right) {
  if (!separator) return split_at_spaces(text, limit, from_right);
  SSM_CHECK(!separator->empty(), "split: the separator is empty");
  std::vector<std::string_view> parts;
  std::string_view rest = text;
  while (limit < 0 || std::ssize(parts) < limit) {
    const size_t at = from_right ? rest.rfind(*separator) : rest.find(*separator);
    if (at == rest.npos) break;
    const std::string_view before = rest.substr(0, at), after = rest.substr(at + separator->size());
    parts.push_back(from_right ? after : before);
    rest = from_right ? before : after;
  }
  parts.push_back(rest);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    size_t end = at + step.size;
    if (is_line_end(step.code_point)) {
      if (text[at] == '\r' && text.substr(end).starts_with('\n')) ++end;
      lines.push_back(text.substr(begin, (keep_ends ? end : at) - begin));
      begin = end;
    }
    at = end;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  std::string result;
  if (from.empty()) {  // between all characters
    int64_t done = 0;
    for (const std::string_view c : characters(text)) {
      if (limit < 0 || done++ < limit) result += to;
      result += c;
    }
    if (limit < 0 || done < limit) result += to;
    return result;
  }
  for (int64_t done = 0;; ++done) {
    const size_t at = limit >= 0 && done >= limit ? text.npos : text.find(from);
    result += text.substr(0, at);
    if (at == text.npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

std::string python_quoted(std::string_view text) {
  const bool single = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = single ? '"' : '\'';
  std::string result(1, quote);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    const int32_t c = step.code_point;
    if (c == quote || c == '\\') {
      result += '\\';
      result += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      result += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (c >= 0 && is_printable(c)) {
      result += text.substr(at, step.size);
    } else {
      result += escaped(c < 0 ? static_cast<uint8_t>(text[at]) : c);
    }
    at += step.size;
  }
  result += quote;
  return result;
}

std::string json_quoted(std::string_view text, bool ascii) {
  std::string result = "\"";
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    const int32_t c = step.code_point;
    constexpr std::string_view plain = "\"\\\n\r\t\f\b", names = "\"\\nrtfb";
    const size_t known = c >= 0 && c < 0x80 ? plain.find(static_cast<char>(c)) : plain.npos;
    if (known != plain.npos) {
      result += '\\';
      result += names[known];
    } else if (c >= 0 && (c < 0x20 || (ascii && c >= 0x7F))) {
      result += json_escaped(c);
    } else {
      result += text.substr(at, step.size);
    }
    at += step.size;
  }
  return result + '"';
}

std::string float_text(double value, std::string_view infinity, std::string_view nan) {
  if (std::isnan(value)) return std::string(nan);
  if (std::isinf(value)) return fmt::format("{}{}", value < 0 ? "-" : "", infinity);
  // The shortest digits, d.ddde+xx, laid out as Python does.
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, std::abs(value), std::chars_format::scientific);
  const std::string_view number(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = number.find('e');
  std::string digits(number.substr(0, e));
  std::erase(digits, '.');
  int exponent = 0;
  std::from_chars(buffer + e + 2, end.ptr, exponent);
  if (number[e + 1] == '-') exponent = -exponent;
  const char* const sign = std::signbit(value) ? "-" : "";
  const std::string_view all = digits;
  if (exponent < -4 || exponent >= 16) {
    const char* const point = all.size() > 1 ? "." : "";
    return fmt::format("{}{}{}{}e{}{:02}", sign, all[0], point, all.substr(1), exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) return fmt::format("{}0.{:0<{}}{}", sign, "", -exponent - 1, all);
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (all.size() <= whole) return fmt::format("{}{:0<{}}.0", sign, all, whole);
  return fmt::format("{}{}.{}", sign, all.substr(0, whole), all.substr(whole));
}

}  // namespace ssm::text::jinja
