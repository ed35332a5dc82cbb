#include "ssm/text/json_tokenizer.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

// Appends the bytes that GPT-2's alphabet spells; false, and nothing appended, for another character.
bool append_byte_level(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t at = 0; at < token.size();) {
    const Utf8Step step = utf8_step(token, at);
    const auto byte = byte_of_char(step.code_point);
    if (!byte) {
      out.resize(before);
      return false;
    }
    out.push_back(static_cast<char>(*byte));
    at += step.size;
  }
  return true;
}

std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

void replace_all(std::string& text, const std::string& pattern, const std::string& content) {
  for (size_t at = 0; (at = text.find(pattern, at)) != text.npos; at += content.size()) {
    text.replace(at, pattern.size(), content);
  }
}

void parse_strip(const JsonObject& object, bool fused, TokenDecoder& out) {
  SSM_CHECK(fused, "{}: a Strip before a Fuse is not supported", object.name);
  SSM_CHECK(object.string("content") == " " && object.count("stop", 0) == 0 && object.count("start", 1) == 1,
            "{}: only one space at the start may be stripped", object.name);
  out.drops_first_space = true;
}

void parse_part(const JsonObject& object, bool& fused, TokenDecoder& out) {
  const std::string& type = object.string("type");
  if (type == "Fuse") {
    fused = true;
  } else if (type == "ByteLevel") {
    SSM_CHECK(!fused && !out.byte_fallback, "{}: a ByteLevel may not follow others", object.name);
    out.byte_level = true;
  } else if (type == "ByteFallback") {
    SSM_CHECK(!fused && !out.byte_level, "{}: a ByteFallback may not follow a Fuse or a ByteLevel",
              object.name);
    out.byte_fallback = true;
  } else if (type == "Replace") {
    const JsonObject pattern(object.at("pattern"), object.name_of("pattern"));
    SSM_CHECK(!pattern.find("Regex"), "{}: only a Replace of a String is supported", pattern.name);
    const std::string& from = pattern.string("String");
    const std::string& to = object.string("content");
    SSM_CHECK(!from.empty() && to.size() <= from.size(), "{}: the content is longer than the pattern",
              object.name);
    SSM_CHECK(!fused && !out.byte_level && !out.byte_fallback, "{}: a Replace must come first", object.name);
    out.replacements.emplace_back(from, to);
  } else if (type == "Strip") {
    parse_strip(object, fused, out);
  } else if (type == "Metaspace") {
    const std::string& from = object.string("replacement");
    SSM_CHECK(!from.empty(), "{} is empty", object.name_of("replacement"));
    const bool never = object.find("prepend_scheme") ? object.string("prepend_scheme") == "never"
                                                     : !object.boolean("add_prefix_space", true);
    out.replacements.emplace_back(from, " ");
    out.drops_first_space |= !never;
  } else {
    fail("{}.type \"{}\" is not supported", object.name, type);
  }
}

}  // namespace

TokenDecoder parse_decoder(const nlohmann::json& json, const std::string& name) {
  constexpr size_t kMaxParts = 32;
  TokenDecoder out;
  bool fused = false;
  SSM_CHECK(!json.is_null(), "{} is missing: how tokens become text is not known", name);
  const JsonObject object(json, name);
  if (object.string("type") != "Sequence") {
    parse_part(object, fused, out);
    return out;
  }
  const auto& parts = object.array("decoders");
  SSM_CHECK(parts.size() <= kMaxParts, "{}: more than {} decoders", name, kMaxParts);
  for (size_t i = 0; i < parts.size(); ++i) {
    parse_part(JsonObject(parts[i], fmt::format("{}.decoders[{}]", name, i)), fused, out);
  }
  return out;
}

void append_decoded(const TokenDecoder& decoder, std::string_view token, std::string& out) {
  if (decoder.byte_level && append_byte_level(token, out)) return;
  std::string text(token);
  for (const auto& [pattern, content] : decoder.replacements) replace_all(text, pattern, content);
  if (decoder.byte_fallback) {
    if (const auto byte = fallback_byte(text)) return out.push_back(*byte);
  }
  out.append(text);
}

}  // namespace ssm::text
