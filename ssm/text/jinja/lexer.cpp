#include "ssm/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <optional>

#include "ssm/core/error.h"
#include "ssm/text/utf8.h"

namespace ssm::text::jinja {
namespace {

bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string with_line_feeds(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else {
      text += '\n';
      if (source.substr(i + 1).starts_with('\n')) ++i;
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : source_(with_line_feeds(source)), name_(name) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) next_part();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  void advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
  }
  template <class... A>
  [[noreturn]] void refuse(fmt::format_string<A...> format, A&&... a) const {
    fail("{}:{}: {}", name_, line_, fmt::format(format, std::forward<A>(a)...));
  }

  // Text up to the next tag, and that tag.
  void next_part() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == source_.npos || tag + 1 == source_.size()) {
        tag = source_.size();
        break;
      }
      const char second = source_[tag + 1];
      if (second == '%' || second == '{' || second == '#') break;
    }
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    if (tag < source_.size()) text = before_tag(text, tag);
    if (!text.empty()) add(TokenKind::text, std::string(text));
    advance(tag - at_);
    if (at_ == source_.size()) return;
    const char second = source_[at_ + 1];
    const bool sign = at_ + 2 < source_.size() && (source_[at_ + 2] == '-' || source_[at_ + 2] == '+');
    if (second == '#') {
      comment();
    } else if (second == '%') {
      add(TokenKind::block_begin, "");
      advance(sign ? 3 : 2);
      inside(true);
    } else {
      add(TokenKind::print_begin, "");
      advance(at_ + 2 < source_.size() && source_[at_ + 2] == '-' ? 3 : 2);
      inside(false);
    }
  }

  // What is left of a text before a tag: "-" takes all white space, a block or comment the indentation.
  std::string_view before_tag(std::string_view text, size_t tag) const {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (sign == '-') {
      while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
      return text;
    }
    if (sign == '+' || source_[tag + 1] == '{') return text;
    const size_t line = text.rfind('\n') + 1;  // 0 where there is none
    const bool begins_line = line > 0 || at_ == 0 || source_[at_ - 1] == '\n';
    const bool blank = std::all_of(text.begin() + static_cast<std::ptrdiff_t>(line), text.end(), is_blank);
    return begins_line && blank ? text.substr(0, line) : text;
  }

  void skip_blanks() {
    size_t n = 0;
    while (n < rest().size() && is_blank(rest()[n])) ++n;
    advance(n);
  }

  // Behind "%}" and "#}": a newline, or with "-" all white space.
  void after_block(char sign) {
    if (sign == '-') {
      skip_blanks();
    } else if (sign != '+' && rest().starts_with('\n')) {
      advance(1);
    }
  }

  void comment() {
    const size_t end = source_.find("#}", at_ + 2);
    if (end == source_.npos) refuse("a comment has no end");
    const char sign = end > at_ + 2 ? source_[end - 1] : ' ';
    advance(end + 2 - at_);
    after_block(sign);
  }

  void inside(bool block) {
    const int begin = line_;
    std::string open;  // brackets that wait for their end
    for (;;) {
      skip_blanks();
      if (at_ == source_.size()) {
        line_ = begin;
        refuse("\"{}\" has no end", block ? "{%" : "{{");
      }
      if (open.empty() && tag_ends(block)) return;
      next_token(open);
    }
  }

  bool tag_ends(bool block) {
    const std::string_view close = block ? "%}" : "}}";
    const char sign = rest()[0];
    const bool has_sign = (sign == '-' || (block && sign == '+')) && rest().substr(1).starts_with(close);
    if (!has_sign && !rest().starts_with(close)) return false;
    add(block ? TokenKind::block_end : TokenKind::print_end, "");
    advance(has_sign ? 3 : 2);
    if (block) {
      after_block(has_sign ? sign : ' ');
    } else if (has_sign) {
      skip_blanks();
    }
    return true;
  }

  void next_token(std::string& open) {
    const char c = rest()[0];
    if (begins_name(c)) {
      size_t n = 1;
      while (n < rest().size() && (begins_name(rest()[n]) || is_digit(rest()[n]))) ++n;
      add(TokenKind::name, std::string(rest().substr(0, n)));
      advance(n);
    } else if (is_digit(c)) {
      number();
    } else if (c == '\'' || c == '"') {
      string(c);
    } else {
      sign(open);
    }
  }

  void number() {
    const auto digits = [&](size_t n) {
      while (n < rest().size() && (is_digit(rest()[n]) || rest()[n] == '_')) ++n;
      return n;
    };
    const bool after_dot =
        !tokens_.empty() && tokens_.back().kind == TokenKind::sign && tokens_.back().text == ".";
    size_t n = digits(0);
    TokenKind kind = TokenKind::integer;
    if (!after_dot && n + 1 < rest().size() && rest()[n] == '.' && is_digit(rest()[n + 1])) {
      n = digits(n + 1);
      kind = TokenKind::real;
    }
    if (!after_dot && n < rest().size() && (rest()[n] == 'e' || rest()[n] == 'E')) {
      const bool signed_ = n + 1 < rest().size() && (rest()[n + 1] == '-' || rest()[n + 1] == '+');
      const size_t begin = n + (signed_ ? 2 : 1), end = digits(begin);
      if (end > begin) {
        n = end;
        kind = TokenKind::real;
      }
    }
    if (n < rest().size() && begins_name(rest()[n])) refuse("this form of a number is not supported");
    std::string text(rest().substr(0, n));
    std::erase(text, '_');
    add(kind, std::move(text));
    advance(n);
  }

  void string(char quote) {
    const int line = line_;
    std::string text;
    size_t n = 1;
    for (; n < rest().size() && rest()[n] != quote; ++n) {
      if (rest()[n] != '\\') {
        text += rest()[n];
      } else {
        n += escape(rest().substr(n), text) - 1;
      }
    }
    if (n >= rest().size()) refuse("a string has no end");
    advance(n + 1);
    tokens_.push_back({TokenKind::string, std::move(text), line});
  }

  // The escape at the beginning of `from`, and how long it is: Python's.
  size_t escape(std::string_view from, std::string& text) const {
    if (from.size() < 2) refuse("a string has no end");
    constexpr std::string_view names = "\\'\"abfnrtv", meanings = "\\'\"\a\b\f\n\r\t\v";
    const char c = from[1];
    if (c == '\n') return 2;
    if (const size_t known = names.find(c); known != names.npos) {
      text += meanings[known];
      return 2;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) return code_point(from.substr(2), digits, text) + 2;
    if (is_digit(c)) refuse("an octal escape in a string is not supported");
    if (c == 'N') refuse("\\N in a string is not supported");
    text += from.substr(0, 2);
    return 2;
  }

  size_t code_point(std::string_view from, size_t digits, std::string& text) const {
    int64_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char d = i < from.size() ? from[i] : ' ';
      const int digit = is_digit(d)            ? d - '0'
                        : d >= 'a' && d <= 'f' ? d - 'a' + 10
                        : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                               : -1;
      if (digit < 0) refuse("an escape in a string needs {} hexadecimal digits", digits);
      value = value * 16 + digit;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      refuse("an escape in a string is no character");
    append_utf8(static_cast<int32_t>(value), text);
    return digits;
  }

  void sign(std::string& open) {
    static constexpr std::array<std::string_view, 26> kSigns{
        "==", "!=", ">=", "<=", "//", "**", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    const auto it =
        std::find_if(kSigns.begin(), kSigns.end(), [&](std::string_view s) { return rest().starts_with(s); });
    if (it == kSigns.end()) refuse("the character \"{}\" inside of a tag", printable_character());
    const char c = (*it)[0];
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) refuse("\"{}\" without its beginning", c);
      open.pop_back();
    }
    add(TokenKind::sign, std::string(*it));
    advance(it->size());
  }

  std::string printable_character() const {
    const auto byte = static_cast<uint8_t>(rest()[0]);
    return byte > 0x20 && byte < 0x7F ? std::string(1, rest()[0]) : fmt::format("\\x{:02x}", byte);
  }

  std::string source_;
  const std::string& name_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<Token> tokens_of(std::string_view source, const std::string& name) {
  return Lexer(source, name).run();
}

}  // namespace ssm::text::jinja
