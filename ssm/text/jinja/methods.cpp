#include <algorithm>
#include <map>
#include <optional>

#include "ssm/text/jinja/builtins.h"
#include "ssm/text/jinja/python_text.h"

namespace ssm::text::jinja {
namespace {

using StringMethod = Value (*)(const std::string&, Arguments&, Budget&);
using DictMethod = Value (*)(const Dict&, Arguments&, Budget&);

template <Side side>
Value stripped(const std::string& s, Arguments& a, Budget& budget) {
  const Value* chars = a.find(0, "chars");
  if (!chars || chars->is_none()) return make_string(std::string(strip(s, std::nullopt, side)), budget);
  const std::string set = a.text(0, "chars");
  budget.step(set.size() * s.size() / 16);
  return make_string(std::string(strip(s, set, side)), budget);
}

template <std::string (*change)(std::string_view)>
Value changed(const std::string& s, Arguments&, Budget& budget) {
  budget.make(s.size());
  return make_string(change(s), budget);
}

// startswith and endswith: one str, or a tuple of them.
template <bool at_end>
Value has_end(const std::string& s, Arguments& a, Budget& budget) {
  SSM_CHECK(a.count() == 1, "{}: a second argument is not supported", a.callee());
  const Value& wanted = a.need(0, "prefix");
  const auto matches = [&](const Value& v) {
    SSM_CHECK(v.string(), "{}: of a {}", a.callee(), type_name(v));
    return at_end ? s.ends_with(*v.string()) : s.starts_with(*v.string());
  };
  if (!wanted.list()) return matches(wanted);
  const std::vector<Value> all = items_of(wanted, budget);
  return std::any_of(all.begin(), all.end(), matches);
}

Value list_of(const std::vector<std::string_view>& parts, Budget& budget) {
  std::vector<Value> items;
  for (const std::string_view part : parts) items.push_back(make_string(std::string(part), budget));
  return make_list(std::move(items), budget);
}

template <bool from_right>
Value parts(const std::string& s, Arguments& a, Budget& budget) {
  const Value* separator = a.find(0, "sep");
  const bool spaces = !separator || separator->is_none();
  const std::string by = spaces ? "" : a.text(0, "sep");
  const int64_t limit = a.integer_or(1, "maxsplit", -1);
  budget.make(s.size());
  return list_of(split(s, spaces ? std::nullopt : std::optional<std::string_view>(by), limit, from_right),
                 budget);
}

Value lines(const std::string& s, Arguments& a, Budget& budget) {
  const bool keep = a.flag(0, "keepends");
  return list_of(split_lines(s, keep), budget);
}

Value replaced(const std::string& s, Arguments& a, Budget& budget) {
  const std::string from = a.text(0, "old"), to = a.text(1, "new");
  budget.make((from.empty() ? s.size() + 1 : s.size() / from.size()) * to.size());
  return make_string(replace_all(s, from, to, a.integer_or(2, "count", -1)), budget);
}

// In characters; -1 where it is not there.
template <bool from_right>
Value found(const std::string& s, Arguments& a, Budget& budget) {
  const std::string wanted = a.text(0, "sub");
  budget.step(s.size() / 16);
  const size_t at = from_right ? s.rfind(wanted) : s.find(wanted);
  return at == s.npos ? int64_t{-1} : length_of(std::string_view(s).substr(0, at));
}

Value counted(const std::string& s, Arguments& a, Budget& budget) {
  const std::string wanted = a.text(0, "sub");
  SSM_CHECK(!wanted.empty(), "count: of an empty str");
  budget.step(s.size() / 16);
  int64_t n = 0;
  for (size_t at = s.find(wanted); at != s.npos; at = s.find(wanted, at + wanted.size())) ++n;
  return n;
}

template <bool at_end>
Value without(const std::string& s, Arguments& a, Budget& budget) {
  const std::string part = a.text(0, "prefix");
  if (!(at_end ? s.ends_with(part) : s.starts_with(part))) return make_string(s, budget);
  return make_string(at_end ? s.substr(0, s.size() - part.size()) : s.substr(part.size()), budget);
}

Value join(const std::string& s, Arguments& a, Budget& budget) {
  std::string result;
  bool first = true;
  for (const Value& one : items_of(a.need(0, "iterable"), budget)) {
    SSM_CHECK(one.string(), "join: of a {}", type_name(one));
    budget.make(one.string()->size() + s.size());
    if (!first) result += s;
    result += *one.string();
    first = false;
  }
  return result;
}

Value is_digits(const std::string& s, Arguments&, Budget&) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) { return c >= '0' && c <= '9'; });
}

const std::map<std::string_view, StringMethod>& string_methods() {
  static const std::map<std::string_view, StringMethod> all{{"capitalize", changed<capitalize>},
                                                            {"count", counted},
                                                            {"endswith", has_end<true>},
                                                            {"find", found<false>},
                                                            {"isdigit", is_digits},
                                                            {"join", join},
                                                            {"lower", changed<lower>},
                                                            {"lstrip", stripped<Side::left>},
                                                            {"removeprefix", without<false>},
                                                            {"removesuffix", without<true>},
                                                            {"replace", replaced},
                                                            {"rfind", found<true>},
                                                            {"rsplit", parts<true>},
                                                            {"rstrip", stripped<Side::right>},
                                                            {"split", parts<false>},
                                                            {"splitlines", lines},
                                                            {"startswith", has_end<false>},
                                                            {"strip", stripped<Side::both>},
                                                            {"upper", changed<upper>}};
  return all;
}

Value items(const Dict& dict, Arguments&, Budget& budget) {
  std::vector<Value> all;
  for (const auto& [key, value] : dict.items) {
    all.push_back(make_list({make_string(key, budget), value}, budget, ListKind::tuple));
  }
  return make_list(std::move(all), budget);
}

Value keys(const Dict& dict, Arguments&, Budget& budget) {
  std::vector<Value> all;
  for (const auto& item : dict.items) all.push_back(make_string(item.first, budget));
  return make_list(std::move(all), budget);
}

Value values(const Dict& dict, Arguments&, Budget& budget) {
  std::vector<Value> all;
  for (const auto& item : dict.items) all.push_back(item.second);
  return make_list(std::move(all), budget);
}

Value get(const Dict& dict, Arguments& a, Budget& budget) {
  const Value& key = a.need(0, "key");
  const Value* otherwise = a.find(1, "default");
  budget.step(dict.items.size());
  const Value* value = key.string() ? dict.find(*key.string()) : nullptr;
  return value ? *value : otherwise ? *otherwise : Value();
}

const std::map<std::string_view, DictMethod>& dict_methods() {
  static const std::map<std::string_view, DictMethod> all{
      {"get", get}, {"items", items}, {"keys", keys}, {"values", values}};
  return all;
}

Value list_method(const List& list, std::string_view name, Arguments& a, Budget& budget) {
  const Value& wanted = a.need(0, "value");
  int64_t count = 0, first = -1;
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (!equal(list.items[i], wanted, budget)) continue;
    if (count++ == 0) first = static_cast<int64_t>(i);
  }
  SSM_CHECK(name == "count" || first >= 0, "index: the value is not in the list");
  return name == "count" ? count : first;
}

}  // namespace

bool has_method(const Value& object, std::string_view name) {
  if (object.string()) return string_methods().contains(name);
  if (object.dict()) return dict_methods().contains(name);
  return object.list() && (name == "count" || name == "index");
}

Value call_method(const Value& object, std::string_view name, Arguments& arguments, Budget& budget) {
  budget.step();
  SSM_CHECK(!object.is_undefined(), "{}", object.why_undefined());
  SSM_CHECK(has_method(object, name), "the method \"{}\" of a {} is not supported", name, type_name(object));
  Value result = object.string() ? string_methods().at(name)(*object.string(), arguments, budget)
                 : object.dict() ? dict_methods().at(name)(*object.dict(), arguments, budget)
                                 : list_method(*object.list(), name, arguments, budget);
  arguments.finish();
  return result;
}

}  // namespace ssm::text::jinja
