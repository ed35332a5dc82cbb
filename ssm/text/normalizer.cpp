#include "ssm/text/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

constexpr size_t kMaxParts = 32;

// The end of the stretch of well-formed UTF-8, or of ill-formed bytes, that begins at `at`.
size_t end_of_stretch(std::string_view text, size_t at) {
  const bool well_formed = utf8_step(text, at).code_point >= 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if ((step.code_point >= 0) != well_formed) break;
    at += step.size;
  }
  return at;
}

// What a form needs of ICU. The reference normalizes by the tables of Unicode 9: a character newer than that
// is to it one that nothing combines with.
struct Form {
  const icu::Normalizer2* all = nullptr;
  UProperty quick_check = UCHAR_NFC_QUICK_CHECK;
};

// Made when first needed: it takes milliseconds, and most text is normalized already.
const icu::UnicodeSet& unicode_9() {
  static const std::unique_ptr<icu::UnicodeSet> set = [] {
    UErrorCode status = U_ZERO_ERROR;
    auto made = std::make_unique<icu::UnicodeSet>(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
    SSM_CHECK(U_SUCCESS(status), "ICU lacks the ages of characters: {}", u_errorName(status));
    made->freeze();
    return made;
  }();
  return *set;
}

// ICU puts combining marks in order by insertion, which takes quadratic time on a long run of them. A long
// run is therefore decomposed and sorted beforehand; the result is canonically equivalent.
std::string with_long_runs_sorted(std::string_view text) {
  constexpr size_t kLongRun = 64;
  struct Mark {
    uint8_t order;
    UChar32 code_point;
  };
  std::vector<Mark> run;
  std::string out;
  size_t run_begin = 0;
  const auto flush = [&](size_t end) {
    if (run.size() > kLongRun) {
      std::stable_sort(run.begin(), run.end(), [](Mark a, Mark b) { return a.order < b.order; });
      for (const Mark& mark : run) append_utf8(mark.code_point, out);
    } else {
      out.append(text.substr(run_begin, end - run_begin));
    }
    run.clear();
    run_begin = end;
  };
  UErrorCode status = U_ZERO_ERROR;
  const auto* nfd = icu::Normalizer2::getNFDInstance(status);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.code_point < 0x300 || u_getCombiningClass(step.code_point) == 0 ||
        !unicode_9().contains(step.code_point)) {
      if (!run.empty()) flush(at);
    } else {
      if (run.empty()) flush(at);
      icu::UnicodeString parts;
      if (!nfd->getDecomposition(step.code_point, parts)) parts.setTo(step.code_point);
      for (int32_t i = 0; i < parts.length(); i = parts.moveIndex32(i, 1)) {
        run.push_back({u_getCombiningClass(parts.char32At(i)), parts.char32At(i)});
      }
    }
    at += step.size;
  }
  flush(text.size());
  return out;
}

class UnicodeForm final : public Normalizer {
 public:
  UnicodeForm(const Form& form, std::string name) : form_(form), name_(std::move(name)) {}

  bool unchanged(std::string_view text) const override {
    for (size_t at = 0; at < text.size();) {
      const Utf8Step step = utf8_step(text, at);
      if (step.code_point >= 0x80 &&
          (u_getIntPropertyValue(step.code_point, form_.quick_check) != UNORM_YES ||
           u_getCombiningClass(step.code_point) != 0)) {
        return false;
      }
      at += step.size;
    }
    return true;
  }

  std::string apply(std::string_view text) const override {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t end = end_of_stretch(text, at);
      const std::string_view stretch = text.substr(at, end - at);
      if (utf8_step(text, at).code_point < 0) {
        out.append(stretch);
      } else {
        normalize(with_long_runs_sorted(stretch), out);
      }
      at = end;
    }
    return out;
  }

 private:
  void normalize(std::string_view text, std::string& out) const {
    // ICU counts in int32: a longer text is cut before a character that nothing before it combines with.
    constexpr size_t kMaxBytes = size_t{1} << 28;
    const icu::FilteredNormalizer2 form(*form_.all, unicode_9());
    const auto is_boundary = [&](size_t at) {
      const Utf8Step step = utf8_step(text, at);
      return step.code_point >= 0 && form.hasBoundaryBefore(step.code_point);
    };
    while (!text.empty()) {
      size_t end = std::min(text.size(), kMaxBytes);
      while (end < text.size() && !is_boundary(end)) ++end;
      SSM_CHECK(end <= 2 * kMaxBytes, "{}: the text is one run of combining characters", name_);
      icu::StringByteSink<std::string> sink(&out);
      UErrorCode status = U_ZERO_ERROR;
      form.normalizeUTF8(0, {text.data(), static_cast<int32_t>(end)}, sink, nullptr, status);
      SSM_CHECK(U_SUCCESS(status), "{}: {}", name_, u_errorName(status));
      text.remove_prefix(end);
    }
  }

  Form form_;
  std::string name_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string apply(std::string_view text) const override {
    return text.empty() ? std::string() : prefix_ + std::string(text);
  }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer {
 public:
  Replace(std::string pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string apply(std::string_view text) const override {
    std::string out;
    size_t at = 0;
    for (size_t found; (found = text.find(pattern_, at)) != text.npos; at = found + pattern_.size()) {
      out.append(text.substr(at, found - at)).append(content_);
    }
    return out.append(text.substr(at));
  }

 private:
  std::string pattern_, content_;
};

std::optional<Form> unicode_form(const std::string& type) {
  UErrorCode status = U_ZERO_ERROR;
  Form form;
  if (type == "NFC") {
    form = {icu::Normalizer2::getNFCInstance(status), UCHAR_NFC_QUICK_CHECK};
  } else if (type == "NFD") {
    form = {icu::Normalizer2::getNFDInstance(status), UCHAR_NFD_QUICK_CHECK};
  } else if (type == "NFKC") {
    form = {icu::Normalizer2::getNFKCInstance(status), UCHAR_NFKC_QUICK_CHECK};
  } else if (type == "NFKD") {
    form = {icu::Normalizer2::getNFKDInstance(status), UCHAR_NFKD_QUICK_CHECK};
  } else {
    return std::nullopt;
  }
  SSM_CHECK(U_SUCCESS(status), "{}: {}", type, u_errorName(status));
  return form;
}

void parse_into(const nlohmann::json& json, const std::string& name, NormalizerParts& out) {
  const JsonObject object(json, name);
  const std::string& type = object.string("type");
  if (type == "Sequence") {
    size_t i = 0;
    for (const auto& part : object.array("normalizers")) {
      parse_into(part, fmt::format("{}.normalizers[{}]", name, i++), out);
    }
  } else if (const auto form = unicode_form(type)) {
    out.parts.push_back(std::make_unique<UnicodeForm>(*form, type));
  } else if (type == "Prepend") {
    const std::string& prefix = object.string("prepend");
    out.prepends_space |= prefix == " " || prefix == "\u2581";
    out.parts.push_back(std::make_unique<Prepend>(prefix));
  } else if (type == "Replace") {
    const JsonObject pattern(object.at("pattern"), object.name_of("pattern"));
    SSM_CHECK(!pattern.find("Regex"), "{}: only a Replace of a String is supported", pattern.name);
    SSM_CHECK(!pattern.string("String").empty(), "{}.String is empty", pattern.name);
    // Chained replacements may not blow a text up.
    SSM_CHECK(object.string("content").size() <= 64, "{} is too long", object.name_of("content"));
    out.parts.push_back(std::make_unique<Replace>(pattern.string("String"), object.string("content")));
  } else {
    fail("{}.type \"{}\" is not supported", name, type);
  }
  SSM_CHECK(out.parts.size() <= kMaxParts, "{}: more than {} normalizers", name, kMaxParts);
}

}  // namespace

NormalizerParts parse_normalizer(const nlohmann::json& json, const std::string& name) {
  NormalizerParts out;
  if (!json.is_null()) parse_into(json, name, out);
  return out;
}

}  // namespace ssm::text
