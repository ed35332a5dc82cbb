#include <algorithm>
#include <cmath>
#include <optional>

#include "ssm/text/jinja/builtins.h"
#include "ssm/text/jinja/python_text.h"

namespace ssm::text::jinja {
namespace {

std::optional<int64_t> whole(const Value& v) {
  if (const bool* b = v.boolean()) return *b ? 1 : 0;
  if (const int64_t* i = v.integer()) return *i;
  return std::nullopt;
}
double number(const Value& v) { return v.real() ? *v.real() : static_cast<double>(*whole(v)); }

void need_defined(const Value& v) { SSM_CHECK(!v.is_undefined(), "{}", v.why_undefined()); }

[[noreturn]] void unsupported(std::string_view op, const Value& a, const Value& b) {
  need_defined(a);
  need_defined(b);
  fail("\"{}\" of {} and {}", op, type_name(a), type_name(b));
}

using Checked = bool (*)(int64_t, int64_t, int64_t*);
bool add(int64_t a, int64_t b, int64_t* r) { return __builtin_add_overflow(a, b, r); }
bool subtract(int64_t a, int64_t b, int64_t* r) { return __builtin_sub_overflow(a, b, r); }
bool multiply(int64_t a, int64_t b, int64_t* r) { return __builtin_mul_overflow(a, b, r); }
int64_t checked(Checked op, int64_t a, int64_t b) {
  int64_t result = 0;
  SSM_CHECK(!op(a, b, &result), "a number is too large");
  return result;
}

int64_t floor_divide(int64_t a, int64_t b) {
  SSM_CHECK(b != 0, "division by zero");
  SSM_CHECK(a != INT64_MIN || b != -1, "a number is too large");
  return a / b - ((a % b != 0) && ((a < 0) != (b < 0)) ? 1 : 0);
}

int64_t power(int64_t base, int64_t exponent) {
  if (base == 0 || base == 1 || exponent == 0) return exponent == 0 ? 1 : base;
  if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  int64_t result = 1;
  for (; exponent > 0; --exponent) result = checked(multiply, result, base);
  return result;
}

Value of_integers(std::string_view op, int64_t a, int64_t b) {
  if (op == "+") return checked(add, a, b);
  if (op == "-") return checked(subtract, a, b);
  if (op == "*") return checked(multiply, a, b);
  if (op == "//") return floor_divide(a, b);
  if (op == "%") {
    if (b == -1) return int64_t{0};
    SSM_CHECK(b != 0, "division by zero");
    const int64_t rest = a % b;
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
  }
  if (op == "**" && b >= 0) return power(a, b);
  SSM_CHECK(op != "/" || b != 0, "division by zero");
  const auto x = static_cast<double>(a), y = static_cast<double>(b);
  SSM_CHECK(op != "**" || a != 0, "zero to a negative power");
  return op == "/" ? x / y : std::pow(x, y);
}

Value of_reals(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") return std::pow(a, b);
  SSM_CHECK(b != 0, "division by zero");
  if (op == "/") return a / b;
  const double quotient = std::floor(a / b);
  return op == "//" ? quotient : a - quotient * b;
}

Value repeated(const Value& subject, int64_t times, Budget& budget) {
  const auto n = static_cast<uint64_t>(std::max<int64_t>(times, 0));
  if (const std::string* s = subject.string()) {
    budget.make(s->empty() ? 0 : n > UINT32_MAX ? UINT64_MAX : n * s->size());
    std::string result;
    for (uint64_t i = 0; i < n && !s->empty(); ++i) result += *s;
    return result;
  }
  const List& list = *subject.list();
  budget.make(list.items.empty() ? 0 : n > UINT32_MAX ? UINT64_MAX : n * list.items.size());
  std::vector<Value> items;
  for (uint64_t i = 0; i < n && !list.items.empty(); ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return make_list(std::move(items), budget, list.kind);
}

bool repeats(const Value& v) { return v.string() || (v.list() && v.list()->kind != ListKind::generator); }

int order(std::string_view op, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    const auto x = whole(a), y = whole(b);
    if (x && y) return *x < *y ? -1 : *x > *y;
    return number(a) < number(b) ? -1 : number(a) > number(b);
  }
  if (!a.string() || !b.string()) unsupported(op, a, b);
  return a.string()->compare(*b.string());
}

Value loose(const Value& object, const std::string& key) {
  return Value::undefined(fmt::format("a {} has no \"{}\"", type_name(object), key.substr(0, 80)));
}

// Python's slice.indices()
struct Range {
  int64_t begin, end, step;
};
Range range_of(int64_t n, const Value& begin, const Value& end, const Value& step) {
  const auto bound = [&](const Value& v, int64_t otherwise, int64_t low, int64_t high) {
    if (v.is_none()) return otherwise;
    SSM_CHECK(whole(v), "a slice's bound is a {}", type_name(v));
    const int64_t at = *whole(v);
    return std::clamp(at < 0 ? std::max(at, -n - 1) + n : at, low, high);
  };
  SSM_CHECK(step.is_none() || whole(step), "a slice's step is a {}", type_name(step));
  const int64_t by = step.is_none() ? 1 : std::clamp<int64_t>(*whole(step), -n - 1, n + 1);
  SSM_CHECK(by != 0, "a slice's step is 0");
  if (by > 0) return {bound(begin, 0, 0, n), bound(end, n, 0, n), by};
  return {bound(begin, n - 1, -1, n - 1), bound(end, -1, -1, n - 1), by};
}

template <class Add>
void each(const Range& range, const Add& add) {
  for (int64_t i = range.begin; range.step > 0 ? i < range.end : i > range.end; i += range.step) {
    add(static_cast<size_t>(i));
  }
}

}  // namespace

Value binary(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "~") return make_string(to_text(a, budget) + to_text(b, budget), budget);
  if (a.is_number() && b.is_number()) {
    const auto x = whole(a), y = whole(b);
    return x && y ? of_integers(op, *x, *y) : of_reals(op, number(a), number(b));
  }
  if (op == "+" && a.string() && b.string()) return make_string(*a.string() + *b.string(), budget);
  if (op == "+" && a.list() && b.list() && a.list()->kind == b.list()->kind && repeats(a)) {
    std::vector<Value> items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return make_list(std::move(items), budget, a.list()->kind);
  }
  if (op == "*" && repeats(a) && whole(b)) return repeated(a, *whole(b), budget);
  if (op == "*" && repeats(b) && whole(a)) return repeated(b, *whole(a), budget);
  SSM_CHECK(op != "%" || !a.string(), "formatting a str with \"%\" is not supported");
  unsupported(op, a, b);
}

Value unary(std::string_view op, const Value& a) {
  need_defined(a);
  SSM_CHECK(a.is_number(), "\"{}\" of a {}", op, type_name(a));
  if (a.real()) return op == "-" ? -*a.real() : *a.real();
  return op == "-" ? of_integers("-", 0, *whole(a)) : Value(*whole(a));
}

bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "==") return equal(a, b, budget);
  if (op == "!=") return !equal(a, b, budget);
  if (op == "in") return contains(b, a, budget);
  if (op == "not in") return !contains(b, a, budget);
  if ((a.real() && std::isnan(*a.real())) || (b.real() && std::isnan(*b.real()))) return false;
  const int sign = order(op, a, b);
  if (op == "<") return sign < 0;
  if (op == ">") return sign > 0;
  return op == "<=" ? sign <= 0 : sign >= 0;
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const std::string* s = container.string()) {
    SSM_CHECK(item.string(), "\"in\" a str: a {} is no part of one", type_name(item));
    budget.step(s->size() / 16 + item.string()->size() / 16);
    return s->find(*item.string()) != s->npos;
  }
  if (const Dict* dict = container.dict()) {
    budget.step(dict->items.size());
    return item.string() && dict->find(*item.string());
  }
  if (container.is_undefined()) return false;
  SSM_CHECK(container.list(), "\"in\" of a {}", type_name(container));
  const std::vector<Value> items = items_of(container, budget);
  return std::any_of(items.begin(), items.end(), [&](const Value& v) { return equal(v, item, budget); });
}

Value attribute(const Value& object, const std::string& name, Budget& budget) {
  need_defined(object);
  if (const Dict* space = object.space() ? object.space() : object.dict()) {
    SSM_CHECK(!has_method(object, name), "\"{}\" is a method of a dict, and not called here", name);
    budget.step(space->items.size());
    const Value* found = space->find(name);
    return found ? *found : loose(object, name);
  }
  SSM_CHECK(!has_method(object, name), "\"{}\" is a method of a {}, and not called here", name,
            type_name(object));
  return loose(object, name);
}

Value item(const Value& object, const Value& key, Budget& budget) {
  need_defined(object);
  need_defined(key);
  if (const Dict* dict = object.space() ? object.space() : object.dict()) {
    if (!key.string()) return loose(object, to_text(key, budget));
    budget.step(dict->items.size());
    const Value* found = dict->find(*key.string());
    return found ? *found : loose(object, *key.string());
  }
  const auto index = whole(key);
  if (!index) return loose(object, to_text(key, budget));
  if (const std::string* s = object.string()) {
    budget.make(s->size());
    const auto all = characters(*s);
    const int64_t at = *index < 0 ? *index + std::ssize(all) : *index;
    if (at < 0 || at >= std::ssize(all)) return loose(object, std::to_string(*index));
    return make_string(std::string(all[static_cast<size_t>(at)]), budget);
  }
  const List* list = object.list();
  if (!list || list->kind == ListKind::generator) return loose(object, std::to_string(*index));
  const int64_t at = *index < 0 ? *index + std::ssize(list->items) : *index;
  if (at < 0 || at >= std::ssize(list->items)) return loose(object, std::to_string(*index));
  return list->items[static_cast<size_t>(at)];
}

Value slice(const Value& object, const Value& begin, const Value& end, const Value& step, Budget& budget) {
  need_defined(object);
  if (const std::string* s = object.string()) {
    budget.make(s->size());
    const auto all = characters(*s);
    std::string result;
    each(range_of(std::ssize(all), begin, end, step), [&](size_t i) { result += all[i]; });
    return make_string(std::move(result), budget);
  }
  const List* list = object.list();
  SSM_CHECK(list && list->kind != ListKind::generator, "a {} cannot be sliced", type_name(object));
  std::vector<Value> items;
  each(range_of(std::ssize(list->items), begin, end, step),
       [&](size_t i) { items.push_back(list->items[i]); });
  return make_list(std::move(items), budget, list->kind);
}

}  // namespace ssm::text::jinja
