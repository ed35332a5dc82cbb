// The expressions of a template, by jinja2's precedence.
#pragma once

#include <initializer_list>

#include "ssm/text/jinja/token_reader.h"

namespace ssm::text::jinja {

class ExpressionParser : protected TokenReader {
 protected:
  using TokenReader::TokenReader;

  ExprPtr tuple(bool with_choice);
  ExprPtr expression();
  ExprPtr logical_or();
  ExprPtr filters(ExprPtr e);
  ExprPtr one_filter(ExprPtr subject);
  ExprPtr block_text();  // what the filters behind a block's tag begin with

 private:
  ExprPtr make(Op op, std::string text = "");
  // Adds what an expression is made of; this is where its depth is bounded.
  void add(Expr& e, ExprPtr part);
  ExprPtr make(Op op, std::string text, ExprPtr a, ExprPtr b = nullptr);
  ExprPtr logical_and();
  ExprPtr logical_not();
  ExprPtr compare();
  template <class Next>
  ExprPtr binary(std::initializer_list<std::string_view> signs, const Next& next) {
    ExprPtr e = next();
    for (;;) {
      const bool follows = std::any_of(signs.begin(), signs.end(), [&](auto sign) { return is_sign(sign); });
      if (!follows) return e;
      std::string sign = take().text;
      e = make(Op::binary, std::move(sign), std::move(e), next());
    }
  }
  ExprPtr sum();
  ExprPtr concatenation();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filters);
  ExprPtr primary();
  ExprPtr name_or_constant();
  ExprPtr in_parentheses();
  ExprPtr list();
  ExprPtr dict();
  ExprPtr postfix(ExprPtr e);
  ExprPtr subscript(ExprPtr object);
  // "(a, b, c=d)"
  void arguments(Expr& e);
  ExprPtr test(ExprPtr subject);

  int depth_ = 0;
};

}  // namespace ssm::text::jinja
