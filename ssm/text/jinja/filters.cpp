#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "ssm/text/jinja/builtins.h"
#include "ssm/text/jinja/python_text.h"

namespace ssm::text::jinja {
namespace {

using Filter = Value (*)(const Value&, Arguments&, Budget&);

std::string text_of(const Value& v, Budget& budget) {
  std::string text = to_text(v, budget);
  budget.make(text.size());
  return text;
}

template <std::string (*change)(std::string_view)>
Value changed(const Value& v, Arguments&, Budget& budget) {
  return make_string(change(text_of(v, budget)), budget);
}

Value trim(const Value& v, Arguments& a, Budget& budget) {
  const Value* chars = a.find(0, "chars");
  const std::string text = text_of(v, budget);
  if (!chars || chars->is_none()) return make_string(std::string(strip(text, std::nullopt)), budget);
  const std::string set = a.text(0, "chars");
  budget.step(set.size() * text.size());
  return make_string(std::string(strip(text, set)), budget);
}

Value length(const Value& v, Arguments&, Budget& budget) {
  if (const std::string* s = v.string()) {
    budget.step(s->size() / 16);
    return length_of(*s);
  }
  if (const Dict* dict = v.dict()) return static_cast<int64_t>(std::ssize(dict->items));
  if (v.is_undefined()) return int64_t{0};
  SSM_CHECK(v.list() && v.list()->kind != ListKind::generator, "length: a {} has none",
            v.list() ? "generator" : type_name(v));
  return static_cast<int64_t>(std::ssize(v.list()->items));
}

// `names` separated by dots, of each level; digits are positions in a list. What is missing is `otherwise`.
Value attribute_of(Value v, std::string_view names, Budget& budget, const Value* otherwise = nullptr) {
  while (!names.empty()) {
    const size_t dot = std::min(names.find('.'), names.size());
    const std::string_view name = names.substr(0, dot);
    int64_t index = 0;
    const auto end = std::from_chars(name.data(), name.data() + name.size(), index);
    const bool is_index = !name.empty() && end.ec == std::errc() && end.ptr == name.data() + name.size();
    v = item(v, is_index ? Value(index) : Value(std::string(name)), budget);
    if (v.is_undefined() && otherwise) v = *otherwise;
    names.remove_prefix(std::min(dot + 1, names.size()));
  }
  return v;
}

Value join(const Value& v, Arguments& a, Budget& budget) {
  const std::string between = a.find(0, "d") ? text_of(a.need(0, "d"), budget) : "";
  const std::string names = a.text_or(1, "attribute", "");
  std::string result;
  bool first = true;
  for (const Value& one : items_of(v, budget)) {
    const std::string part = to_text(attribute_of(one, names, budget), budget);
    budget.make(part.size() + between.size());
    if (!first) result += between;
    result += part;
    first = false;
  }
  return result;
}

Value otherwise(const Value& v, Arguments& a, Budget&) {
  const Value* value = a.find(0, "default_value");
  const bool all_false = a.flag(1, "boolean");
  if (!v.is_undefined() && !(all_false && !truthy(v))) return v;
  return value ? *value : Value(std::string());
}

Value first_of(const Value& v, Arguments&, Budget& budget) {
  const std::vector<Value> items = items_of(v, budget);
  return items.empty() ? Value::undefined("the first item of nothing") : items.front();
}
Value last_of(const Value& v, Arguments&, Budget& budget) {
  SSM_CHECK(!v.list() || v.list()->kind != ListKind::generator,
            "last: of a generator; | list makes it a list");
  const std::vector<Value> items = items_of(v, budget);
  return items.empty() ? Value::undefined("the last item of nothing") : items.back();
}

Value as_list(const Value& v, Arguments&, Budget& budget) { return make_list(items_of(v, budget), budget); }

Value reversed(const Value& v, Arguments&, Budget& budget) {
  std::vector<Value> items = items_of(v, budget);
  std::reverse(items.begin(), items.end());
  if (!v.string()) return make_list(std::move(items), budget, ListKind::generator);
  std::string text;
  for (const Value& c : items) text += *c.string();
  return make_string(std::move(text), budget);
}

std::vector<Value> pairs_of(const Dict& dict, Budget& budget) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict.items) {
    pairs.push_back(make_list({make_string(key, budget), value}, budget, ListKind::tuple));
  }
  return pairs;
}

Value items_filter(const Value& v, Arguments&, Budget& budget) {
  if (v.is_undefined()) return make_list({}, budget, ListKind::generator);
  SSM_CHECK(v.dict(), "items: of a {}", type_name(v));
  return make_list(pairs_of(*v.dict(), budget), budget, ListKind::generator);
}

Value dictsort(const Value& v, Arguments&, Budget& budget) {
  SSM_CHECK(v.dict(), "dictsort: of a {}", type_name(v));
  std::vector<std::pair<std::string, Value>> keyed;
  for (Value& pair : pairs_of(*v.dict(), budget)) {
    const std::string& key = *pair.list()->items[0].string();
    budget.make(key.size());
    keyed.emplace_back(lower(key), std::move(pair));
  }
  budget.step(16 * keyed.size());
  std::stable_sort(keyed.begin(), keyed.end(),
                   [](const auto& x, const auto& y) { return x.first < y.first; });
  std::vector<Value> items;
  for (auto& pair : keyed) items.push_back(std::move(pair.second));
  return make_list(std::move(items), budget);
}

Value unique(const Value& v, Arguments& a, Budget& budget) {
  const std::string names = a.text_or(1, "attribute", "");
  SSM_CHECK(a.count() == 0, "unique: only \"attribute\" is supported");
  std::vector<Value> kept, keys;
  for (const Value& one : items_of(v, budget)) {
    Value key = attribute_of(one, names, budget);
    if (key.string()) key = make_string(lower(*key.string()), budget);
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& k) { return equal(k, key, budget); }))
      continue;
    keys.push_back(key);
    kept.push_back(one);
  }
  return make_list(std::move(kept), budget, ListKind::generator);
}

// Filters that take the name of another filter or test, and its arguments.
bool hands_arguments_on(std::string_view name) {
  return name == "map" || name.starts_with("select") || name.starts_with("reject");
}

Value map(const Value& v, Arguments& a, Budget& budget) {
  std::vector<Value> mapped;
  if (a.count() == 0) {
    const std::string names = a.text(0, "attribute");
    const Value* missing = a.find(1, "default");
    a.finish();
    for (const Value& one : items_of(v, budget)) mapped.push_back(attribute_of(one, names, budget, missing));
  } else {
    const std::string name = a.text(0, "filter");
    SSM_CHECK(is_filter(name) && !hands_arguments_on(name), "map: the filter \"{}\" is not supported", name);
    for (const Value& one : items_of(v, budget)) {
      Arguments rest = a.rest(1, name);
      mapped.push_back(apply_filter(name, one, rest, budget));
    }
  }
  return make_list(std::move(mapped), budget, ListKind::generator);
}

// select, reject, selectattr, rejectattr: items for which a test (without one: the item itself) is `wanted`.
template <bool wanted, bool by_attribute>
Value filtered(const Value& v, Arguments& a, Budget& budget) {
  const size_t test_at = by_attribute ? 1 : 0;
  const std::string names = by_attribute ? a.text(0, "attribute") : "";
  const std::string test = a.text_or(test_at, "test", "");
  SSM_CHECK(test.empty() || is_test(test), "{}: the test \"{}\" is not supported", a.callee(), test);
  std::vector<Value> kept;
  for (const Value& one : items_of(v, budget)) {
    const Value subject = attribute_of(one, names, budget);
    Arguments rest = a.rest(test_at + 1, test);
    const bool holds = test.empty() ? truthy(subject) : apply_test(test, subject, rest, budget);
    if (holds == wanted) kept.push_back(one);
  }
  return make_list(std::move(kept), budget, ListKind::generator);
}

Value replace(const Value& v, Arguments& a, Budget& budget) {
  const std::string text = text_of(v, budget), from = a.text(0, "old"), to = a.text(1, "new");
  budget.make((from.empty() ? text.size() + 1 : text.size() / from.size()) * to.size());
  return make_string(replace_all(text, from, to, a.integer_or(2, "count", -1)), budget);
}

Value indent(const Value& v, Arguments& a, Budget& budget) {
  const Value* width = a.find(0, "width");
  const int64_t columns = width && width->integer() ? *width->integer() : 4;
  SSM_CHECK(columns >= 0 && columns <= 1000, "indent: a width of {}", columns);
  const std::string by =
      width && width->string() ? *width->string() : std::string(static_cast<size_t>(columns), ' ');
  const bool first = a.flag(1, "first"), blank = a.flag(2, "blank");
  const std::string text = text_of(v, budget);
  std::string result;
  bool begins = true;
  for (const std::string_view line : split(text, "\n", -1, false)) {
    if (!begins) result += '\n';
    if ((!begins || first) && (blank || (begins && first) || !line.empty())) {
      budget.make(by.size());
      result += by;
    }
    result += line;
    begins = false;
  }
  return make_string(std::move(result), budget);
}

Value to_int(const Value& v, Arguments& a, Budget& budget) {
  const int64_t missing = a.integer_or(0, "default", 0);
  if (const bool* b = v.boolean()) return int64_t{*b};
  if (v.integer()) return v;
  double real = std::nan("");
  if (v.real()) real = *v.real();
  if (v.string()) {
    const std::string text(strip(text_of(v, budget), std::nullopt));
    const std::string_view digits = std::string_view(text).substr(text.starts_with('+') ? 1 : 0);
    int64_t whole = 0;
    auto end = std::from_chars(digits.data(), digits.data() + digits.size(), whole);
    if (end.ec == std::errc() && end.ptr == digits.data() + digits.size()) return whole;
    end = std::from_chars(digits.data(), digits.data() + digits.size(), real);
    if (end.ec != std::errc() || end.ptr != digits.data() + digits.size()) return missing;
  }
  return std::abs(real) < 9e18 ? static_cast<int64_t>(real) : missing;
}

Value to_float(const Value& v, Arguments& a, Budget& budget) {
  const Value* missing = a.find(0, "default");
  if (v.real()) return v;
  if (v.integer()) return static_cast<double>(*v.integer());
  if (const bool* b = v.boolean()) return *b ? 1.0 : 0.0;
  if (v.string()) {
    const std::string text(strip(text_of(v, budget), std::nullopt));
    const std::string_view digits = std::string_view(text).substr(text.starts_with('+') ? 1 : 0);
    double real = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), real);
    if (end.ec == std::errc() && end.ptr == digits.data() + digits.size()) return real;
  }
  return missing ? *missing : Value(0.0);
}

Value absolute(const Value& v, Arguments&, Budget&) {
  SSM_CHECK(v.is_number(), "abs: of a {}", type_name(v));
  if (v.real()) return std::abs(*v.real());
  const Value negated = unary("-", v);
  return *negated.integer() > 0 ? negated : unary("+", v);
}

Value as_string(const Value& v, Arguments&, Budget& budget) {
  return make_string(to_text(v, budget), budget);
}
Value as_json(const Value& v, Arguments& a, Budget& budget) {
  JsonStyle style;
  style.ascii = a.flag(0, "ensure_ascii");
  style.indent = a.integer_or(1, "indent", -1);
  SSM_CHECK(style.indent <= 64, "tojson: an indentation of {}", style.indent);
  if (style.indent >= 0) style.item_separator.assign(1, ',');
  if (const Value* pair = a.find(2, "separators"); pair && !pair->is_none()) {
    const List* list = pair->list();
    SSM_CHECK(list && list->items.size() == 2 && list->items[0].string() && list->items[1].string(),
              "tojson: separators are two str");
    style.item_separator = *list->items[0].string();
    style.key_separator = *list->items[1].string();
  }
  style.sort_keys = a.flag(3, "sort_keys");
  return to_json(v, style, budget);
}

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> all{{"abs", absolute},
                                                      {"capitalize", changed<capitalize>},
                                                      {"count", length},
                                                      {"d", otherwise},
                                                      {"default", otherwise},
                                                      {"dictsort", dictsort},
                                                      {"first", first_of},
                                                      {"float", to_float},
                                                      {"indent", indent},
                                                      {"int", to_int},
                                                      {"items", items_filter},
                                                      {"join", join},
                                                      {"last", last_of},
                                                      {"length", length},
                                                      {"list", as_list},
                                                      {"lower", changed<lower>},
                                                      {"map", map},
                                                      {"reject", filtered<false, false>},
                                                      {"rejectattr", filtered<false, true>},
                                                      {"replace", replace},
                                                      {"reverse", reversed},
                                                      {"safe", as_string},
                                                      {"select", filtered<true, false>},
                                                      {"selectattr", filtered<true, true>},
                                                      {"string", as_string},
                                                      {"title", changed<title_filter>},
                                                      {"tojson", as_json},
                                                      {"trim", trim},
                                                      {"unique", unique},
                                                      {"upper", changed<upper>}};
  return all;
}

}  // namespace

bool is_filter(std::string_view name) { return filters().contains(name); }

Value apply_filter(std::string_view name, const Value& subject, Arguments& arguments, Budget& budget) {
  budget.step();
  Value result = filters().at(name)(subject, arguments, budget);
  if (!hands_arguments_on(name)) arguments.finish();
  return result;
}

}  // namespace ssm::text::jinja
