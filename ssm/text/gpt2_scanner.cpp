#include "ssm/text/gpt2_scanner.h"

#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

// The length of 's 't 're 've 'm 'll 'd at the start of `text`, or 0.
size_t contraction(std::string_view text) {
  if (text.size() < 2) return 0;
  switch (text[1]) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return text.size() > 2 && text[2] == 'e' ? 3 : 0;
    case 'l':
      return text.size() > 2 && text[2] == 'l' ? 3 : 0;
    default:
      return 0;
  }
}

}  // namespace

size_t gpt2_match_end(std::string_view text, size_t at) {
  if (text[at] == '\'') {
    if (const size_t size = contraction(text.substr(at))) return at + size;
  }
  size_t end = at;
  Utf8Step step = utf8_step(text, end);
  CharClass kind = class_of(step.code_point);
  if (text[at] == ' ' && at + 1 < text.size()) {
    const Utf8Step after = utf8_step(text, at + 1);
    const CharClass kind_after = class_of(after.code_point);
    if (kind_after != CharClass::space) {
      end = at + 1;
      step = after;
      kind = kind_after;
    }
  }
  size_t last = end;  // where the run's last character begins
  do {
    last = end;
    end += step.size;
    if (end == text.size()) return end;
    step = utf8_step(text, end);
  } while (class_of(step.code_point) == kind);
  // \s+(?!\S) leaves the last space to what follows it, unless it is the only one.
  return kind == CharClass::space && last > at ? last : end;
}

}  // namespace ssm::text
