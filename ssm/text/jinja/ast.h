// A parsed template. Expressions and statements nest at most so deep that walking them by recursion is safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ssm/text/jinja/value.h"

namespace ssm::text::jinja {

inline constexpr int kDeepestExpression = 100;
inline constexpr int kDeepestStatement = 40;

enum class Op {
  constant,   // value
  name,       // symbol
  list,       // args
  tuple,      // args
  dict,       // args: key, value, key, value, ...
  attribute,  // args[0] . text
  item,       // args[0] [ args[1] ]
  slice,      // args[0] [ args[1] : args[2] : args[3] ], absent ones null
  call,       // args[0] ( args[1...], named ); of an attribute, a method's call
  filter,     // args[0] | text ( args[1...], named )
  test,       // args[0] is text ( args[1...] )
  compare,    // args[0] names[0] args[1] names[1] args[2] ...
  binary,     // args[0] text args[1]: + - * / // % ** ~
  unary,      // text args[0]: + -
  logical_not,
  logical_and,
  logical_or,
  choice,  // args[0] if args[1] else args[2], which may be null
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;
struct Expr {
  Op op = Op::constant;
  int line = 1, depth = 1, symbol = -1;
  std::string text;
  std::vector<std::string> names;
  Value value;
  std::vector<ExprPtr> args;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

struct Stmt;
using Block = std::vector<Stmt>;

// What `set` and `for` give a value: one symbol, several, or an attribute of a namespace.
struct Target {
  std::vector<int> symbols;
  std::string attribute;
};

struct Macro {
  std::string name;
  std::vector<std::pair<int, ExprPtr>> parameters;  // a symbol, and a default or null
  std::vector<std::string> parameter_names;
  std::vector<Stmt> body;
};

enum class StmtKind {
  text,
  print,
  branch,
  loop,
  set,
  set_block,
  macro,
  generation,
  filter_block,
  stop,
  next
};

struct Stmt {
  StmtKind kind = StmtKind::text;
  int line = 1;
  std::string text;
  Target target;
  ExprPtr expr;       // print, loop: what is gone through; set; set_block, filter_block: filters on `symbol`
  ExprPtr condition;  // loop: which items
  std::vector<std::pair<ExprPtr, Block>> branches;  // branch: the last one's condition may be null
  Block body, otherwise;
  std::unique_ptr<Macro> macro;
};

// What a block's text is called for the filters behind `set x |` and `filter`.
inline constexpr int kBlockText = 0;

struct Program {
  std::string name;                  // of the template, in errors
  std::vector<std::string> symbols;  // [0] is kBlockText
  Block body;
  bool marks_generation = false;
};

// Throws Error beginning with "NAME:LINE: ".
Program parse(std::string_view source, std::string name);

}  // namespace ssm::text::jinja
