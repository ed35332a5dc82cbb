// What the parsers of expressions and of tags share: the tokens, and errors that name template and line.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ssm/text/jinja/ast.h"
#include "ssm/text/jinja/lexer.h"

namespace ssm::text::jinja {

class TokenReader {
 protected:
  TokenReader(std::string_view source, std::string name) {
    constexpr size_t kLongestTemplate = size_t{1} << 20;
    program_.name = std::move(name);
    program_.symbols = {""};
    SSM_CHECK(source.size() <= kLongestTemplate, "{}: {} bytes of template (at most {})", program_.name,
              source.size(), kLongestTemplate);
    tokens_ = tokens_of(source, program_.name);
  }

  const Token& now() const { return tokens_[at_]; }
  const Token& ahead(size_t n = 1) const { return tokens_[std::min(at_ + n, tokens_.size() - 1)]; }
  // The end is there again and again.
  Token take() {
    Token token = now();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_sign(std::string_view sign) const { return now().kind == TokenKind::sign && now().text == sign; }
  bool is_name(std::string_view name) const { return now().kind == TokenKind::name && now().text == name; }
  bool take_sign(std::string_view sign) {
    if (!is_sign(sign)) return false;
    take();
    return true;
  }
  bool take_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  void need_sign(std::string_view sign) {
    if (!take_sign(sign)) refuse("\"{}\" is expected{}", sign, before());
  }
  void need_name(std::string_view name) {
    if (!take_name(name)) refuse("\"{}\" is expected{}", name, before());
  }
  std::string a_name() {
    if (now().kind != TokenKind::name) refuse("a name is expected{}", before());
    return take().text;
  }
  void end_tag() {
    if (now().kind != TokenKind::block_end) refuse("the end of the tag is expected{}", before());
    take();
  }
  std::string before() const {
    switch (now().kind) {
      case TokenKind::block_end:
        return " before \"%}\"";
      case TokenKind::print_end:
        return " before \"}}\"";
      case TokenKind::end:
        return " before the template's end";
      default:
        return fmt::format(" before \"{}\"", now().text.substr(0, 40));
    }
  }
  template <class... A>
  [[noreturn]] void refuse(fmt::format_string<A...> format, A&&... a) const {
    fail("{}:{}: {}", program_.name, now().line, fmt::format(format, std::forward<A>(a)...));
  }

  int symbol(const std::string& name) {
    const auto it = std::find(program_.symbols.begin() + 1, program_.symbols.end(), name);
    if (it != program_.symbols.end()) return static_cast<int>(it - program_.symbols.begin());
    program_.symbols.push_back(name);
    return static_cast<int>(program_.symbols.size()) - 1;
  }

  Program program_;

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

}  // namespace ssm::text::jinja
