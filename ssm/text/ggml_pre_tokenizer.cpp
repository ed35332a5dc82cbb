#include <array>

#include "ssm/core/error.h"
#include "ssm/core/log.h"
#include "ssm/text/ggml_parts.h"

namespace ssm::text {
namespace {

using nlohmann::json;

constexpr const char* kNone = "null";
constexpr const char* kNfc = R"({"type": "NFC"})";
constexpr const char* kGpt2 = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
constexpr const char* kFalcon = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    {"type": "Digits", "individual_digits": false},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false}]})";
constexpr const char* kDigits = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]})";
// Of Llama 3 and Qwen 2: they differ in how many digits stay together.
constexpr const char* kLlama3 = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})";
constexpr const char* kQwen2 = R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})";

// Of several names for the same parts the first is written: "olmo" is what the converter calls GPT-NeoX's.
struct Known {
  const char *name, *normalizer, *pre_tokenizer;
  bool ignore_merges = false;
};
constexpr std::array kKnown{Known{"gpt-2", kNone, kGpt2},
                            Known{"olmo", kNfc, kGpt2},
                            Known{"mpt", kNfc, kGpt2},
                            Known{"falcon", kNone, kFalcon},
                            Known{"starcoder", kNone, kDigits},
                            Known{"smollm", kNone, kDigits},
                            Known{"llama-bpe", kNone, kLlama3, true},
                            Known{"qwen2", kNfc, kQwen2}};

// Without what changes nothing, and with defaults written out, so that equal parts are equal JSON.
json canonical(json part) {
  if (!part.is_object()) return part;
  for (const char* list : {"pretokenizers", "normalizers"}) {
    if (!part.contains(list) || !part[list].is_array()) continue;
    for (json& inner : part[list]) inner = canonical(inner);
    if (part[list].size() == 1) return part[list][0];
  }
  part.erase("trim_offsets");
  const json type = part.value("type", json());
  if (type == "ByteLevel" && !part.contains("use_regex")) part["use_regex"] = true;
  if (type == "Split" && !part.contains("invert")) part["invert"] = false;
  return part;
}

}  // namespace

GgmlPre ggml_pre(const std::string& pre, const std::string& name) {
  std::string wanted = pre;
  if (pre.empty() || pre == "default") {
    log(LogLevel::warning,
        fmt::format("{}: does not say how its tokenizer cuts words; taken to be GPT-NeoX's way", name));
    wanted = "mpt";
  }
  std::string names;
  for (const Known& known : kKnown) {
    if (wanted == known.name)
      return {json::parse(known.normalizer), json::parse(known.pre_tokenizer), known.ignore_merges};
    names.append(names.empty() ? "" : ", ").append(known.name);
  }
  fail("{}: key tokenizer.ggml.pre is \"{}\"; known are {} (--tokenizer PATH reads the original's files)",
       name, pre, names);
}

std::optional<std::string> ggml_pre_name(const GgmlPre& parts) {
  const json normalizer = canonical(parts.normalizer), pre_tokenizer = canonical(parts.pre_tokenizer);
  for (const Known& known : kKnown) {
    if (normalizer == json::parse(known.normalizer) && pre_tokenizer == json::parse(known.pre_tokenizer) &&
        parts.ignore_merges == known.ignore_merges) {
      return known.name;
    }
  }
  return std::nullopt;
}

}  // namespace ssm::text
