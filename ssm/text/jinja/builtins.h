// The filters, tests and methods that templates may use, and the operators; Python's and jinja2's in what
// they do. They throw Error without a place; the evaluator adds template and line.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ssm/text/jinja/value.h"

namespace ssm::text::jinja {

// The arguments of a call. Every one is asked for by position and name; finish() refuses what is left.
class Arguments {
 public:
  Arguments(std::string callee, std::vector<Value> positional,
            std::vector<std::pair<std::string, Value>> named)
      : callee_(std::move(callee)), positional_(std::move(positional)), named_(std::move(named)) {}

  const std::string& callee() const { return callee_; }
  size_t count() const { return positional_.size(); }
  const Value& at(size_t i) const { return positional_[i]; }
  const std::vector<std::pair<std::string, Value>>& named() const { return named_; }

  // nullptr: not given
  const Value* find(size_t position, std::string_view name);
  const Value& need(size_t position, std::string_view name);
  std::string text(size_t position, std::string_view name);  // must be a str
  std::string text_or(size_t position, std::string_view name, std::string otherwise);
  int64_t integer_or(size_t position, std::string_view name, int64_t otherwise);
  bool flag(size_t position, std::string_view name);  // default false
  void finish() const;
  // Those behind the first n positional ones, for a filter that hands them on.
  Arguments rest(size_t n, std::string callee) const;

 private:
  std::string callee_;
  std::vector<Value> positional_;
  std::vector<std::pair<std::string, Value>> named_;
  size_t used_positional_ = 0, used_named_ = 0;
};

bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool takes_argument(std::string_view test);  // of those that may stand without parentheses before it

Value apply_filter(std::string_view name, const Value& subject, Arguments& arguments, Budget& budget);
bool apply_test(std::string_view name, const Value& subject, Arguments& arguments, Budget& budget);
Value call_method(const Value& object, std::string_view name, Arguments& arguments, Budget& budget);
bool has_method(const Value& object, std::string_view name);

Value binary(std::string_view op, const Value& a, const Value& b, Budget& budget);
Value unary(std::string_view op, const Value& a);
bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);
// object.name and object[key]: undefined where it has none; an Error where the object itself is undefined.
Value attribute(const Value& object, const std::string& name, Budget& budget);
Value item(const Value& object, const Value& key, Budget& budget);
Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Budget& budget);

}  // namespace ssm::text::jinja
