#include <set>

#include "ssm/text/jinja/expression_parser.h"

namespace ssm::text::jinja {
namespace {

class Parser : ExpressionParser {
 public:
  Parser(std::string_view source, std::string name) : ExpressionParser(source, std::move(name)) {}

  Program run() {
    program_.body = block({});
    if (now().kind != TokenKind::end) refuse("\"{}\" without its beginning", now().text);
    return std::move(program_);
  }

 private:
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
    s.expr = filters(block_text());
    end_tag();
    captured([&] { s.body = block_to("endset"); });
  }

  void filter_tag(Stmt& s) {
    s.kind = StmtKind::filter_block;
    s.expr = filters(one_filter(block_text()));
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

  int nesting_ = 0, loops_ = 0, captures_ = 0;
  bool generation_ = false;
};

}  // namespace

Program parse(std::string_view source, std::string name) { return Parser(source, std::move(name)).run(); }

}  // namespace ssm::text::jinja
