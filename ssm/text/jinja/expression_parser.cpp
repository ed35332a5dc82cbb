#include "ssm/text/jinja/expression_parser.h"

#include <charconv>

#include "ssm/text/jinja/builtins.h"

namespace ssm::text::jinja {

ExprPtr ExpressionParser::make(Op op, std::string text) {
  auto e = std::make_unique<Expr>();
  e->op = op;
  e->line = now().line;
  e->text = std::move(text);
  return e;
}

void ExpressionParser::add(Expr& e, ExprPtr part) {
  if (part) e.depth = std::max(e.depth, part->depth + 1);
  if (e.depth > kDeepestExpression) refuse("an expression nests deeper than {} levels", kDeepestExpression);
  e.args.push_back(std::move(part));
}

ExprPtr ExpressionParser::make(Op op, std::string text, ExprPtr a, ExprPtr b) {
  ExprPtr e = make(op, std::move(text));
  add(*e, std::move(a));
  if (b) add(*e, std::move(b));
  return e;
}

ExprPtr ExpressionParser::tuple(bool with_choice) {
  const auto one = [&] { return with_choice ? expression() : logical_or(); };
  ExprPtr first = one();
  if (!is_sign(",")) return first;
  ExprPtr e = make(Op::tuple, "", std::move(first));
  while (take_sign(",")) {
    if (now().kind == TokenKind::block_end || now().kind == TokenKind::print_end || is_sign(")")) break;
    add(*e, one());
  }
  return e;
}

ExprPtr ExpressionParser::expression() {
  if (++depth_ > kDeepestExpression) refuse("an expression nests deeper than {} levels", kDeepestExpression);
  ExprPtr e = logical_or();
  while (take_name("if")) {
    ExprPtr condition = logical_or();
    e = make(Op::choice, "", std::move(e), std::move(condition));
    add(*e, take_name("else") ? expression() : nullptr);
  }
  --depth_;
  return e;
}

ExprPtr ExpressionParser::logical_or() {
  ExprPtr e = logical_and();
  while (take_name("or")) e = make(Op::logical_or, "", std::move(e), logical_and());
  return e;
}

ExprPtr ExpressionParser::logical_and() {
  ExprPtr e = logical_not();
  while (take_name("and")) e = make(Op::logical_and, "", std::move(e), logical_not());
  return e;
}

ExprPtr ExpressionParser::logical_not() {
  int times = 0;
  while (take_name("not")) ++times;
  ExprPtr e = compare();
  for (; times > 0; --times) e = make(Op::logical_not, "", std::move(e));
  return e;
}

ExprPtr ExpressionParser::compare() {
  ExprPtr first = sum();
  ExprPtr e;
  for (;;) {
    std::string op;
    if (now().kind == TokenKind::sign &&
        (is_sign("==") || is_sign("!=") || is_sign("<") || is_sign(">") || is_sign("<=") || is_sign(">="))) {
      op = take().text;
    } else if (take_name("in")) {
      op = "in";
    } else if (is_name("not") && ahead().kind == TokenKind::name && ahead().text == "in") {
      take();
      take();
      op = "not in";
    } else {
      return e ? std::move(e) : std::move(first);
    }
    if (!e) e = make(Op::compare, "", std::move(first));
    e->names.push_back(std::move(op));
    add(*e, sum());
  }
}

ExprPtr ExpressionParser::sum() {
  return binary({"+", "-"}, [&] { return concatenation(); });
}

ExprPtr ExpressionParser::concatenation() {
  return binary({"~"}, [&] { return product(); });
}

ExprPtr ExpressionParser::product() {
  return binary({"*", "/", "//", "%"}, [&] { return power(); });
}

ExprPtr ExpressionParser::power() {
  return binary({"**"}, [&] { return unary(true); });
}

ExprPtr ExpressionParser::unary(bool with_filters) {
  if (++depth_ > kDeepestExpression) refuse("an expression nests deeper than {} levels", kDeepestExpression);
  ExprPtr e;
  if (is_sign("-") || is_sign("+")) {
    std::string sign = take().text;
    e = make(Op::unary, std::move(sign), unary(false));
  } else {
    e = primary();
  }
  e = postfix(std::move(e));
  if (with_filters) e = filters(std::move(e));
  --depth_;
  return e;
}

ExprPtr ExpressionParser::primary() {
  ExprPtr e = make(Op::constant);
  switch (now().kind) {
    case TokenKind::name:
      return name_or_constant();
    case TokenKind::string: {
      std::string text = take().text;
      while (now().kind == TokenKind::string) text += take().text;
      e->value = Value(std::move(text));
      return e;
    }
    case TokenKind::integer: {
      int64_t number = 0;
      const std::string digits = take().text;
      const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), number);
      if (end.ec != std::errc()) refuse("the number {} is too large", digits.substr(0, 40));
      e->value = Value(number);
      return e;
    }
    case TokenKind::real: {
      double number = 0;
      const std::string digits = take().text;
      const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), number);
      if (end.ec != std::errc()) refuse("the number {} is too large", digits.substr(0, 40));
      e->value = Value(number);
      return e;
    }
    default:
      break;
  }
  if (take_sign("(")) return in_parentheses();
  if (take_sign("[")) return list();
  if (take_sign("{")) return dict();
  refuse("an expression is expected{}", before());
}

ExprPtr ExpressionParser::name_or_constant() {
  ExprPtr e = make(Op::constant);
  const Token token = take();
  const std::string& name = token.text;
  if (name == "true" || name == "True") {
    e->value = Value(true);
  } else if (name == "false" || name == "False") {
    e->value = Value(false);
  } else if (name != "none" && name != "None") {
    e->op = Op::name;
    e->symbol = symbol(name);
  }
  return e;
}

ExprPtr ExpressionParser::in_parentheses() {
  if (take_sign(")")) return make(Op::tuple);
  ExprPtr e = tuple(true);
  need_sign(")");
  return e;
}

ExprPtr ExpressionParser::list() {
  ExprPtr e = make(Op::list);
  while (!is_sign("]")) {
    if (!e->args.empty()) need_sign(",");
    if (is_sign("]")) break;
    add(*e, expression());
  }
  take();
  return e;
}

ExprPtr ExpressionParser::dict() {
  ExprPtr e = make(Op::dict);
  while (!is_sign("}")) {
    if (!e->args.empty()) need_sign(",");
    if (is_sign("}")) break;
    add(*e, expression());
    need_sign(":");
    add(*e, expression());
  }
  take();
  return e;
}

ExprPtr ExpressionParser::postfix(ExprPtr e) {
  for (;;) {
    if (take_sign(".")) {
      if (now().kind == TokenKind::integer) {
        ExprPtr index = primary();
        e = make(Op::item, "", std::move(e), std::move(index));
      } else {
        std::string name = a_name();
        e = make(Op::attribute, std::move(name), std::move(e));
      }
    } else if (take_sign("[")) {
      e = subscript(std::move(e));
    } else if (is_sign("(")) {
      e = make(Op::call, "", std::move(e));
      arguments(*e);
    } else {
      return e;
    }
  }
}

ExprPtr ExpressionParser::subscript(ExprPtr object) {
  ExprPtr e = make(Op::item, "", std::move(object));
  ExprPtr first = is_sign(":") ? nullptr : expression();
  add(*e, std::move(first));
  if (is_sign(":")) {
    e->op = Op::slice;
    while (take_sign(":")) {
      if (e->args.size() == 4) refuse("a slice has three parts at most");
      add(*e, is_sign(":") || is_sign("]") ? nullptr : expression());
    }
    while (e->args.size() < 4) add(*e, nullptr);
  }
  need_sign("]");
  return e;
}

void ExpressionParser::arguments(Expr& e) {
  need_sign("(");
  for (bool first = true; !is_sign(")"); first = false) {
    if (!first) need_sign(",");
    if (is_sign(")")) break;
    if (is_sign("*") || is_sign("**")) refuse("\"{}\" before an argument is not supported", now().text);
    if (now().kind == TokenKind::name && ahead().kind == TokenKind::sign && ahead().text == "=") {
      std::string name = take().text;
      take();
      add(e, expression());
      e.named.emplace_back(std::move(name), std::move(e.args.back()));
      e.args.pop_back();
    } else {
      if (!e.named.empty()) refuse("an argument without a name follows one with a name");
      add(e, expression());
    }
  }
  take();
}

ExprPtr ExpressionParser::filters(ExprPtr e) {
  for (;;) {
    if (take_sign("|")) {
      e = one_filter(std::move(e));
    } else if (is_name("is")) {
      take();
      e = test(std::move(e));
    } else if (is_sign("(")) {
      e = make(Op::call, "", std::move(e));
      arguments(*e);
    } else {
      return e;
    }
  }
}

ExprPtr ExpressionParser::one_filter(ExprPtr subject) {
  std::string name = a_name();
  if (!is_filter(name)) refuse("the filter \"{}\" is not supported", name);
  ExprPtr e = make(Op::filter, std::move(name), std::move(subject));
  if (is_sign("(")) arguments(*e);
  return e;
}

ExprPtr ExpressionParser::test(ExprPtr subject) {
  const bool negated = take_name("not");
  std::string name = a_name();
  if (!is_test(name)) refuse("the test \"{}\" is not supported", name);
  ExprPtr e = make(Op::test, std::move(name), std::move(subject));
  if (is_sign("(")) {
    arguments(*e);
  } else if (now().kind == TokenKind::string || now().kind == TokenKind::integer ||
             now().kind == TokenKind::real || is_sign("[") || is_sign("{") ||
             (now().kind == TokenKind::name && !is_name("else") && !is_name("or") && !is_name("and") &&
              !is_name("is") && !is_name("if") && !is_name("not") && !is_name("in") &&
              takes_argument(e->text))) {
    add(*e, postfix(primary()));
  }
  if (!e->named.empty()) refuse("a test has no named arguments");
  return negated ? make(Op::logical_not, "", std::move(e)) : std::move(e);
}

ExprPtr ExpressionParser::block_text() {
  ExprPtr text = make(Op::name);
  text->symbol = kBlockText;
  return text;
}

}  // namespace ssm::text::jinja
