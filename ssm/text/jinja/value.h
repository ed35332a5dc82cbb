// What a template computes with: Python's values as far as chat templates know them, immutable but for
// namespaces. Lists and mappings hold data only (no namespace, macro or loop) and nest at most kDeepest
// levels, so that nothing refers to itself and every walk ends.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ssm/core/error.h"

namespace ssm::text::jinja {

// How much a template may still do and make; a template is hostile input.
class Budget {
 public:
  Budget(uint64_t steps, uint64_t bytes) : steps_(steps), bytes_(bytes) {}
  void step(uint64_t n = 1) { take(steps_, n, "it takes too many steps"); }
  void make(uint64_t bytes) { take(bytes_, bytes, "it makes too much text"); }

 private:
  static void take(uint64_t& left, uint64_t n, const char* what) {
    SSM_CHECK(n <= left, "{}", what);
    left -= n;
  }
  uint64_t steps_, bytes_;
};

struct List;
struct Dict;
struct Macro;
struct Loop;
struct Undefined {
  std::shared_ptr<const std::string> what;  // of an error: "'x' is undefined"
};
struct None {};
enum class Global { raise_exception, range, make_namespace, strftime_now, make_dict };
using Namespace = std::shared_ptr<Dict>;

class Value {
 public:
  Value() : v_(None{}) {}
  Value(bool b) : v_(b) {}
  Value(int64_t i) : v_(i) {}
  Value(double d) : v_(d) {}
  Value(std::string s) : v_(std::make_shared<const std::string>(std::move(s))) {}
  Value(std::shared_ptr<const List> list) : v_(std::move(list)) {}
  Value(std::shared_ptr<const Dict> dict) : v_(std::move(dict)) {}
  Value(const Macro* macro) : v_(macro) {}
  Value(const Loop* loop) : v_(loop) {}
  Value(Global global) : v_(global) {}
  Value(const char*) = delete;  // it would be a bool
  static Value make_namespace(Namespace space) {
    Value value;
    value.v_ = NamespaceBox{std::move(space)};
    return value;
  }
  static Value undefined(std::string what) {
    Value value;
    value.v_ = Undefined{std::make_shared<const std::string>(std::move(what))};
    return value;
  }

  // nullptr where the value is of another kind
  const bool* boolean() const { return std::get_if<bool>(&v_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&v_); }
  const double* real() const { return std::get_if<double>(&v_); }
  const std::string* string() const { return pointer<std::string>(); }
  const List* list() const { return pointer<List>(); }
  const Dict* dict() const { return pointer<Dict>(); }
  Dict* space() const {
    const auto* box = std::get_if<NamespaceBox>(&v_);
    return box ? box->space.get() : nullptr;
  }
  const Macro* macro() const {
    const auto* p = std::get_if<const Macro*>(&v_);
    return p ? *p : nullptr;
  }
  const Loop* loop() const {
    const auto* p = std::get_if<const Loop*>(&v_);
    return p ? *p : nullptr;
  }
  const Global* global() const { return std::get_if<Global>(&v_); }
  bool is_none() const { return std::holds_alternative<None>(v_); }
  bool is_undefined() const { return std::holds_alternative<Undefined>(v_); }
  const std::string& why_undefined() const { return *std::get<Undefined>(v_).what; }

  bool is_number() const { return boolean() || integer() || real(); }
  bool is_data() const { return !space() && !macro() && !loop() && !global() && !is_undefined(); }

 private:
  struct NamespaceBox {
    Namespace space;
  };
  template <class T>
  const T* pointer() const {
    const auto* p = std::get_if<std::shared_ptr<const T>>(&v_);
    return p ? p->get() : nullptr;
  }

  std::variant<None, Undefined, bool, int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, NamespaceBox, const Macro*,
               const Loop*, Global>
      v_;
};

inline constexpr int kDeepest = 64;

// A generator is what map, select and the like give: always true, without a length, read once.
enum class ListKind { list, tuple, generator };
struct List {
  std::vector<Value> items;
  ListKind kind = ListKind::list;
  int depth = 1;
  mutable bool was_read = false;  // of a generator
};
struct Dict {
  std::vector<std::pair<std::string, Value>> items;  // in the order in which they came
  int depth = 1;

  const Value* find(std::string_view key) const;
  void set(std::string key, Value value);
};

int depth_of(const Value& value);
// Throw Error where an item is no data, or they nest too deep.
Value make_list(std::vector<Value> items, Budget& budget, ListKind kind = ListKind::list);
Value make_dict(std::vector<std::pair<std::string, Value>> items, Budget& budget);
Value make_string(std::string text, Budget& budget);
Value from_json(const nlohmann::ordered_json& json, Budget& budget);

// As Python calls it in messages: str, list, dict, ...
std::string_view type_name(const Value& value);
bool truthy(const Value& value);
bool equal(const Value& a, const Value& b, Budget& budget);
// str() and repr(); an undefined value is nothing.
std::string to_text(const Value& value, Budget& budget);
std::string repr(const Value& value, Budget& budget);

struct JsonStyle {
  bool ascii = false, sort_keys = false;
  int64_t indent = -1;  // -1: one line
  std::string item_separator = ", ", key_separator = ": ";
};
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);  // json.dumps

// What a for loop or a filter goes through: items, characters or keys. Throws Error for what has none.
std::vector<Value> items_of(const Value& value, Budget& budget);

}  // namespace ssm::text::jinja
