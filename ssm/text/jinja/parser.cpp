#include <algorithm>
#include <charconv>
#include <set>

#include "ssm/text/jinja/ast.h"
#include "ssm/text/jinja/builtins.h"
#include "ssm/text/jinja/lexer.h"

namespace ssm::text::jinja {
namespace {

constexpr size_t kLongestTemplate = size_t{1} << 20;

class Parser {
 public:
  Parser(std::string_view source, std::string name) {
    program_.name = std::move(name);
    program_.symbols = {""};
    SSM_CHECK(source.size() <= kLongestTemplate, "{}: {} bytes of template (at most {})", program_.name,
              source.size(), kLongestTemplate);
    tokens_ = tokens_of(source, program_.name);
  }

  Program run() {
    program_.body = block({});
    if (now().kind != TokenKind::end) refuse("\"{}\" without its beginning", now().text);
    return std::move(program_);
  }

 private:
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead(size_t n = 1) const { return tokens_[std::min(at_ + n, tokens_.size() - 1)]; }
  Token take() { return at_ + 1 < tokens_.size() ? std::move(tokens_[at_++]) : now(); }
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

  // --- statements

  // Up to a tag of one of these names, which is not taken.
  Block block(const std::set<std::string>& ends) {
    if (++nesting_ > kDeepestStatement) refuse("tags nest deeper than {} levels", kDeepestStatement);
    Block statements;
    for (; now().kind != TokenKind::end;) {
      if (now().kind == TokenKind::block_begin && ahead().kind == TokenKind::name &&
          (ends.contains(ahead().text) || ahead().text.starts_with("end") || ahead().text == "else" ||
           ahead().text == "elif")) {
        if (!ends.contains(ahead().text)) {
          take();
          refuse("\"{}\" without its beginning", now().text);
        }
        break;
      }
      statements.push_back(statement());
    }
    --nesting_;
    return statements;
  }

  // The rest of a block and the tag that ends it.
  Block block_to(const std::string& end) {
    const int line = now().line;
    Block statements = block({end});
    take_end(end, line);
    return statements;
  }
  void take_end(const std::string& end, int line) {
    if (now().kind == TokenKind::end) {
      fail("{}:{}: no \"{}\" follows", program_.name, line, end);
    }
    take();
    need_name(end);
    end_tag();
  }

  Stmt statement() {
    Stmt s;
    s.line = now().line;
    if (now().kind == TokenKind::text) {
      s.text = take().text;
    } else if (now().kind == TokenKind::print_begin) {
      take();
      s.kind = StmtKind::print;
      s.expr = tuple(true);
      if (now().kind != TokenKind::print_end) refuse("the end of the tag is expected{}", before());
      take();
    } else {
      take();  // block_begin
      tag(s);
    }
    return s;
  }

  void tag(Stmt& s) {
    const std::string name = a_name();
    if (name == "if") return if_tag(s);
    if (name == "for") return for_tag(s);
    if (name == "set") return set_tag(s);
    if (name == "macro") return macro_tag(s);
    if (name == "generation") return generation_tag(s);
    if (name == "filter") return filter_tag(s);
    if (name == "break" || name == "continue") {
      if (loops_ == 0) refuse("\"{}\" outside of a loop", name);
      s.kind = name == "break" ? StmtKind::stop : StmtKind::next;
      return end_tag();
    }
    refuse("the tag \"{}\" is not supported", name);
  }

  void if_tag(Stmt& s) {
    s.kind = StmtKind::branch;
    const int line = s.line;
    for (bool more = true; more;) {
      ExprPtr condition = logical_or();
      end_tag();
      Block body = block({"elif", "else", "endif"});
      s.branches.emplace_back(std::move(condition), std::move(body));
      more = ahead().text == "elif" && now().kind == TokenKind::block_begin;
      if (more) {
        take();
        take();
      }
    }
    if (now().kind == TokenKind::block_begin && ahead().text == "else") {
      take();
      take();
      end_tag();
      s.branches.emplace_back(nullptr, block({"endif"}));
    }
    take_end("endif", line);
  }

  void for_tag(Stmt& s) {
    s.kind = StmtKind::loop;
    s.target = target(false);
    need_name("in");
    s.expr = tuple(false);
    if (take_name("if")) s.condition = expression();
    if (is_name("recursive")) refuse("\"recursive\" loops are not supported");
    end_tag();
    ++loops_;
    s.body = block({"else", "endfor"});
    --loops_;
    if (now().kind == TokenKind::block_begin && ahead().text == "else") {
      take();
      take();
      end_tag();
      s.otherwise = block({"endfor"});
    }
    take_end("endfor", s.line);
  }

  Target target(bool attributes) {
    Target t;
    do {
      if (now().kind != TokenKind::name) break;  // a comma at the end
      const std::string name = a_name();
      if (name == "loop") refuse("\"loop\" cannot be set");
      t.symbols.push_back(symbol(name));
    } while (take_sign(","));
    if (t.symbols.empty()) refuse("a name is expected{}", before());
    if (attributes && t.symbols.size() == 1 && take_sign(".")) t.attribute = a_name();
    return t;
  }

  void set_tag(Stmt& s) {
    s.target = target(true);
    if (take_sign("=")) {
      s.kind = StmtKind::set;
      s.expr = tuple(true);
      return end_tag();
    }
    s.kind = StmtKind::set_block;
    if (s.target.symbols.size() != 1) refuse("\"=\" is expected{}", before());
    ExprPtr text = make(Op::name);
    text->symbol = kBlockText;
    s.expr = filters(std::move(text));
    end_tag();
    captured([&] { s.body = block_to("endset"); });
  }

  void filter_tag(Stmt& s) {
    s.kind = StmtKind::filter_block;
    ExprPtr text = make(Op::name);
    text->symbol = kBlockText;
    s.expr = filters(one_filter(std::move(text)));
    end_tag();
    captured([&] { s.body = block_to("endfilter"); });
  }

  void macro_tag(Stmt& s) {
    s.kind = StmtKind::macro;
    if (loops_ > 0 || captures_ > 0)
      refuse("a macro inside of a loop or another block's text is not supported");
    s.macro = std::make_unique<Macro>();
    Macro& m = *s.macro;
    m.name = a_name();
    s.target.symbols = {symbol(m.name)};
    need_sign("(");
    while (!is_sign(")")) {
      if (!m.parameters.empty()) need_sign(",");
      m.parameter_names.push_back(a_name());
      ExprPtr otherwise = take_sign("=") ? expression() : nullptr;
      if (!otherwise && !m.parameters.empty() && m.parameters.back().second) {
        refuse("a parameter without default follows one with a default");
      }
      m.parameters.emplace_back(symbol(m.parameter_names.back()), std::move(otherwise));
    }
    take();
    end_tag();
    captured([&] { m.body = block_to("endmacro"); });
  }

  void generation_tag(Stmt& s) {
    s.kind = StmtKind::generation;
    if (captures_ > 0 || generation_)
      refuse("\"generation\" inside of a macro or another block's text is not supported");
    end_tag();
    generation_ = program_.marks_generation = true;
    const int loops = std::exchange(loops_, 0);  // break and continue stay inside
    s.body = block_to("endgeneration");
    loops_ = loops;
    generation_ = false;
  }

  template <class Body>
  void captured(const Body& body) {
    ++captures_;
    const int loops = std::exchange(loops_, 0);
    body();
    loops_ = loops;
    --captures_;
  }

  // --- expressions, by jinja2's precedence

  ExprPtr make(Op op, std::string text = "") {
    auto e = std::make_unique<Expr>();
    e->op = op;
    e->line = now().line;
    e->text = std::move(text);
    return e;
  }
  // Adds what an expression is made of; this is where its depth is bounded.
  void add(Expr& e, ExprPtr part) {
    if (part) e.depth = std::max(e.depth, part->depth + 1);
    if (e.depth > kDeepestExpression) refuse("an expression nests deeper than {} levels", kDeepestExpression);
    e.args.push_back(std::move(part));
  }
  ExprPtr make(Op op, std::string text, ExprPtr a, ExprPtr b = nullptr) {
    ExprPtr e = make(op, std::move(text));
    add(*e, std::move(a));
    if (b) add(*e, std::move(b));
    return e;
  }

  ExprPtr tuple(bool with_choice) {
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

  ExprPtr expression() {
    if (++depth_ > kDeepestExpression)
      refuse("an expression nests deeper than {} levels", kDeepestExpression);
    ExprPtr e = logical_or();
    while (take_name("if")) {
      ExprPtr condition = logical_or();
      e = make(Op::choice, "", std::move(e), std::move(condition));
      add(*e, take_name("else") ? expression() : nullptr);
    }
    --depth_;
    return e;
  }

  ExprPtr logical_or() {
    ExprPtr e = logical_and();
    while (take_name("or")) e = make(Op::logical_or, "", std::move(e), logical_and());
    return e;
  }
  ExprPtr logical_and() {
    ExprPtr e = logical_not();
    while (take_name("and")) e = make(Op::logical_and, "", std::move(e), logical_not());
    return e;
  }
  ExprPtr logical_not() {
    int times = 0;
    while (take_name("not")) ++times;
    ExprPtr e = compare();
    for (; times > 0; --times) e = make(Op::logical_not, "", std::move(e));
    return e;
  }

  ExprPtr compare() {
    ExprPtr first = sum();
    ExprPtr e;
    for (;;) {
      std::string op;
      if (now().kind == TokenKind::sign && (is_sign("==") || is_sign("!=") || is_sign("<") || is_sign(">") ||
                                            is_sign("<=") || is_sign(">="))) {
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
  ExprPtr sum() {
    return binary({"+", "-"}, [&] { return concatenation(); });
  }
  ExprPtr concatenation() {
    return binary({"~"}, [&] { return product(); });
  }
  ExprPtr product() {
    return binary({"*", "/", "//", "%"}, [&] { return power(); });
  }
  ExprPtr power() {
    return binary({"**"}, [&] { return unary(true); });
  }

  ExprPtr unary(bool with_filters) {
    if (++depth_ > kDeepestExpression)
      refuse("an expression nests deeper than {} levels", kDeepestExpression);
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

  ExprPtr primary() {
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

  ExprPtr name_or_constant() {
    ExprPtr e = make(Op::constant);
    const std::string name = take().text;
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

  ExprPtr in_parentheses() {
    if (take_sign(")")) return make(Op::tuple);
    ExprPtr e = tuple(true);
    need_sign(")");
    return e;
  }
  ExprPtr list() {
    ExprPtr e = make(Op::list);
    while (!is_sign("]")) {
      if (!e->args.empty()) need_sign(",");
      if (is_sign("]")) break;
      add(*e, expression());
    }
    take();
    return e;
  }
  ExprPtr dict() {
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

  ExprPtr postfix(ExprPtr e) {
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

  ExprPtr subscript(ExprPtr object) {
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

  // "(a, b, c=d)"
  void arguments(Expr& e) {
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

  ExprPtr filters(ExprPtr e) {
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

  ExprPtr one_filter(ExprPtr subject) {
    std::string name = a_name();
    if (!is_filter(name)) refuse("the filter \"{}\" is not supported", name);
    ExprPtr e = make(Op::filter, std::move(name), std::move(subject));
    if (is_sign("(")) arguments(*e);
    return e;
  }

  ExprPtr test(ExprPtr subject) {
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

  Program program_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0, depth_ = 0, loops_ = 0, captures_ = 0;
  bool generation_ = false;
};

}  // namespace

Program parse(std::string_view source, std::string name) { return Parser(source, std::move(name)).run(); }

}  // namespace ssm::text::jinja
