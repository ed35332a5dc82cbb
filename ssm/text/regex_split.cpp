#include <unicode/regex.h>
#include <unicode/unistr.h>

#include <array>

#include "ssm/text/pre_tokenizer.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {

namespace {

// ICU stops a match after about so many milliseconds: a pattern may not hang the program.
constexpr int32_t kTimeLimit = 10000;
constexpr size_t kMaxPatternBytes = 1 << 14;

// What an Oniguruma escape is in ICU's syntax, inside a set or outside.
struct Escape {
  char letter;
  const char* icu;
};
constexpr std::array kEscapes = {
    Escape{'s', R"(\p{White_Space})"},
    Escape{'S', R"(\P{White_Space})"},
    Escape{'d', R"(\p{Nd})"},
    Escape{'D', R"(\P{Nd})"},
    Escape{'h', "[0-9A-Fa-f]"},
    Escape{'H', "[^0-9A-Fa-f]"},
    Escape{'w', R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}])"},
    Escape{'W', R"([^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}])"},
};
// Outside a set Oniguruma takes these superscripts and fractions for word characters too.
constexpr std::array kEscapesOutside = {
    Escape{'w', R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00b2\u00b3\u00b9\u00bc-\u00be])"},
    Escape{'W', R"([^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u00b2\u00b3\u00b9\u00bc-\u00be])"},
};

std::string translate(const std::string& pattern, const std::string& name) {
  std::string out;
  int set_depth = 0;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '(' && next == '?' && set_depth == 0) {
      // (?m) is another thing in each; the rest of what can stand here means the same or is an error.
      for (size_t k = i + 2;
           k < pattern.size() && (isalpha(static_cast<uint8_t>(pattern[k])) || pattern[k] == '-'); ++k) {
        SSM_CHECK(pattern[k] == 'i' || pattern[k] == '-', "{}: the regex option \"{}\" is not supported",
                  name, pattern[k]);
      }
    }
    if (c == '[') ++set_depth;
    if (c == ']' && set_depth > 0) --set_depth;
    if (c != '\\') {
      out.push_back(c);
      continue;
    }
    SSM_CHECK(next != '\0', "{}: the regex ends in a backslash", name);
    ++i;
    constexpr std::string_view kUnsupported = "bBRXKgkGNOyYQEZMCcoe";
    SSM_CHECK(kUnsupported.find(next) == kUnsupported.npos, "{}: the regex escape \\{} is not supported",
              name, next);
    const Escape* escape = nullptr;
    for (const Escape& e : kEscapes) escape = e.letter == next ? &e : escape;
    if (set_depth == 0) {
      for (const Escape& e : kEscapesOutside) escape = e.letter == next ? &e : escape;
    }
    if (escape) {
      out.append(escape->icu);
    } else {
      out.append({c, next});
    }
  }
  return out;
}

struct Matcher final : SplitScratch::Entry {
  std::unique_ptr<icu::RegexMatcher> matcher;
  icu::UnicodeString text;        // of the piece
  std::vector<uint32_t> byte_at;  // byte_at[i]: where the UTF-16 unit i stands in the piece
};

class RegexSplit final : public PreTokenizer {
 public:
  RegexSplit(const std::string& pattern, SplitBehavior behavior, bool invert, const std::string& name)
      : behavior_(behavior), invert_(invert), name_(name) {
    SSM_CHECK(pattern.size() <= kMaxPatternBytes, "{} is longer than {} bytes", name, kMaxPatternBytes);
    const auto icu_pattern = icu::UnicodeString::fromUTF8(translate(pattern, name));
    UErrorCode status = U_ZERO_ERROR;
    UParseError where{};
    // Oniguruma's ^ and $ are those of lines, and a line ends in \n only.
    const uint32_t flags = UREGEX_MULTILINE | UREGEX_UNIX_LINES;
    pattern_.reset(icu::RegexPattern::compile(icu_pattern, flags, where, status));
    SSM_CHECK(U_SUCCESS(status) && pattern_, "{}: bad regex: {}", name, u_errorName(status));
  }

  void split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const override {
    SSM_CHECK(piece.text.size() < size_t{1} << 30, "{}: a text of {} bytes is too long for a regex", name_,
              piece.text.size());
    Matcher& matcher = matcher_of(scratch);
    fill(piece, matcher);
    matcher.matcher->reset(matcher.text);
    MatchSplitter splitter(piece, behavior_, invert_, sink);
    UErrorCode status = U_ZERO_ERROR;
    while (matcher.matcher->find(status)) {
      const auto begin = static_cast<size_t>(matcher.matcher->start(status));
      const auto end = static_cast<size_t>(matcher.matcher->end(status));
      splitter.match(matcher.byte_at[begin], matcher.byte_at[end]);
    }
    SSM_CHECK(U_SUCCESS(status), "{}: the regex failed on the text: {}", name_, u_errorName(status));
    splitter.finish();
  }

 private:
  Matcher& matcher_of(SplitScratch& scratch) const {
    auto& entry = scratch.matchers[this];
    if (!entry) {
      auto fresh = std::make_unique<Matcher>();
      UErrorCode status = U_ZERO_ERROR;
      fresh->matcher.reset(pattern_->matcher(status));
      if (fresh->matcher) fresh->matcher->setTimeLimit(kTimeLimit, status);
      SSM_CHECK(U_SUCCESS(status) && fresh->matcher, "{}: {}", name_, u_errorName(status));
      entry = std::move(fresh);
    }
    return static_cast<Matcher&>(*entry);
  }

  static void fill(const Piece& piece, Matcher& matcher) {
    matcher.text.remove();
    matcher.byte_at.clear();
    for (size_t at = 0; at < piece.text.size();) {
      const Utf8Step step = piece.byte_level ? Utf8Step{kByteToChar[static_cast<uint8_t>(piece.text[at])], 1}
                                             : utf8_step(piece.text, at);
      const UChar32 c = step.code_point < 0 ? 0xFFFD : step.code_point;
      matcher.text.append(c);
      matcher.byte_at.resize(static_cast<size_t>(matcher.text.length()), static_cast<uint32_t>(at));
      at += step.size;
    }
    matcher.byte_at.push_back(static_cast<uint32_t>(piece.text.size()));
  }

  std::unique_ptr<icu::RegexPattern> pattern_;
  SplitBehavior behavior_;
  bool invert_;
  std::string name_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_regex_split(const std::string& pattern, SplitBehavior behavior,
                                               bool invert, const std::string& name) {
  return std::make_unique<RegexSplit>(pattern, behavior, invert, name);
}

}  // namespace ssm::text
