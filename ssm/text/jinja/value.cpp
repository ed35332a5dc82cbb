#include "ssm/text/jinja/value.h"

#include <algorithm>
#include <functional>
#include <optional>

#include "ssm/text/jinja/python_text.h"

namespace ssm::text::jinja {
namespace {

constexpr uint64_t kItemBytes = 32;  // what an item costs beside its own text

double as_double(const Value& v) {
  if (const bool* b = v.boolean()) return *b ? 1 : 0;
  if (const int64_t* i = v.integer()) return static_cast<double>(*i);
  return *v.real();
}

std::optional<int64_t> as_integer(const Value& v) {
  if (const bool* b = v.boolean()) return *b ? 1 : 0;
  if (const int64_t* i = v.integer()) return *i;
  return std::nullopt;
}

void check_item(const Value& item, int& depth) {
  SSM_CHECK(!item.is_undefined(), "{}", item.why_undefined());
  SSM_CHECK(item.is_data(), "a {} inside of a list or mapping", type_name(item));
  depth = std::max(depth, 1 + depth_of(item));
  SSM_CHECK(depth <= kDeepest, "values nest deeper than {} levels", kDeepest);
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}
  std::string text;

  void write(const Value& value, int64_t level) {
    budget_.step();
    if (const List* list = value.list()) {
      SSM_CHECK(list->kind != ListKind::generator, "tojson: a generator is no JSON; | list makes it one");
      brackets('[', ']', list->items.size(), level, [&](size_t i) { write(list->items[i], level + 1); });
    } else if (const Dict* dict = value.dict()) {
      write(*dict, level);
    } else if (const std::string* s = value.string()) {
      put(json_quoted(*s, style_.ascii));
    } else if (const double* d = value.real()) {
      put(float_text(*d, "Infinity", "NaN"));
    } else if (const bool* b = value.boolean()) {
      put(*b ? "true" : "false");
    } else if (const int64_t* i = value.integer()) {
      put(std::to_string(*i));
    } else {
      SSM_CHECK(!value.is_undefined(), "tojson: {}", value.why_undefined());
      SSM_CHECK(value.is_none(), "tojson: a {} is no JSON", type_name(value));
      put("null");
    }
  }

 private:
  void write(const Dict& dict, int64_t level) {
    std::vector<const std::pair<std::string, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      std::sort(items.begin(), items.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    }
    brackets('{', '}', items.size(), level, [&](size_t i) {
      put(json_quoted(items[i]->first, style_.ascii) + style_.key_separator);
      write(items[i]->second, level + 1);
    });
  }

  template <class Item>
  void brackets(char open, char close, size_t n, int64_t level, const Item& item) {
    put(std::string(1, open));
    for (size_t i = 0; i < n; ++i) {
      if (i > 0) put(style_.item_separator);
      if (style_.indent >= 0) new_line(level + 1);
      item(i);
    }
    if (style_.indent >= 0 && n > 0) new_line(level);
    put(std::string(1, close));
  }
  void new_line(int64_t level) {
    put("\n");
    put(std::string(static_cast<size_t>(level * style_.indent), ' '));
  }
  void put(std::string_view more) {
    budget_.make(more.size());
    text += more;
  }

  const JsonStyle& style_;
  Budget& budget_;
};

std::string join_repr(std::string open, const std::string& close, size_t n, Budget& budget,
                      const std::function<std::string(size_t)>& item) {
  for (size_t i = 0; i < n; ++i) {
    if (i > 0) open += ", ";
    open += item(i);
  }
  budget.make(open.size());
  return open + close;
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  const auto it =
      std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  return it == items.end() ? nullptr : &it->second;
}

void Dict::set(std::string key, Value value) {
  const auto it =
      std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == key; });
  if (it == items.end()) {
    items.emplace_back(std::move(key), std::move(value));
  } else {
    it->second = std::move(value);
  }
}

int depth_of(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  return 0;
}

Value make_list(std::vector<Value> items, Budget& budget, ListKind kind) {
  budget.make(kItemBytes * (items.size() + 1));
  auto list = std::make_shared<List>();
  for (const Value& item : items) check_item(item, list->depth);
  list->items = std::move(items);
  list->kind = kind;
  return Value(std::shared_ptr<const List>(std::move(list)));
}

Value make_dict(std::vector<std::pair<std::string, Value>> items, Budget& budget) {
  budget.make(2 * kItemBytes * (items.size() + 1));
  auto dict = std::make_shared<Dict>();
  for (const auto& item : items) check_item(item.second, dict->depth);
  dict->items = std::move(items);
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value make_string(std::string text, Budget& budget) {
  budget.make(kItemBytes + text.size());
  return Value(std::move(text));
}

Value from_json(const nlohmann::ordered_json& json, Budget& budget) {
  if (json.is_array()) {
    std::vector<Value> items;
    for (const auto& item : json) items.push_back(from_json(item, budget));
    return make_list(std::move(items), budget);
  }
  if (json.is_object()) {
    std::vector<std::pair<std::string, Value>> items;
    for (const auto& [key, item] : json.items()) items.emplace_back(key, from_json(item, budget));
    return make_dict(std::move(items), budget);
  }
  if (json.is_string()) return make_string(json.get<std::string>(), budget);
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned()) {
    SSM_CHECK(json.get<uint64_t>() <= INT64_MAX, "a number is too large: {}", json.get<uint64_t>());
  }
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number()) return Value(json.get<double>());
  return Value();
}

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "undefined value";
  if (value.is_none()) return "None";
  if (value.boolean()) return "bool";
  if (value.integer()) return "int";
  if (value.real()) return "float";
  if (value.string()) return "str";
  if (value.list()) return "list";
  if (value.dict()) return "dict";
  if (value.space()) return "namespace";
  if (value.loop()) return "loop";
  return value.macro() ? "macro" : "function";
}

bool truthy(const Value& value) {
  if (const bool* b = value.boolean()) return *b;
  if (const int64_t* i = value.integer()) return *i != 0;
  if (const double* d = value.real()) return *d != 0;
  if (const std::string* s = value.string()) return !s->empty();
  if (const List* list = value.list()) return list->kind == ListKind::generator || !list->items.empty();
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  return !value.is_none() && !value.is_undefined();
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_number() && b.is_number()) {
    const auto x = as_integer(a), y = as_integer(b);
    return x && y ? *x == *y : as_double(a) == as_double(b);
  }
  if (a.string() && b.string()) {
    budget.step(a.string()->size() / 64);
    return *a.string() == *b.string();
  }
  if (a.list() && b.list()) {
    const List &x = *a.list(), &y = *b.list();
    return x.kind == y.kind && x.items.size() == y.items.size() &&
           std::equal(x.items.begin(), x.items.end(), y.items.begin(),
                      [&](const Value& p, const Value& q) { return equal(p, q, budget); });
  }
  if (a.dict() && b.dict()) {
    const Dict &x = *a.dict(), &y = *b.dict();
    budget.step(x.items.size() * y.items.size());
    return x.items.size() == y.items.size() &&
           std::all_of(x.items.begin(), x.items.end(), [&](const auto& item) {
             const Value* other = y.find(item.first);
             return other && equal(item.second, *other, budget);
           });
  }
  if (a.space() || b.space()) return a.space() == b.space();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

std::string to_text(const Value& value, Budget& budget) {
  if (value.is_undefined()) return {};
  const std::string* s = value.string();
  return s ? *s : repr(value, budget);
}

std::string repr(const Value& value, Budget& budget) {
  budget.step();
  if (const std::string* s = value.string()) {
    budget.make(s->size());
    return python_quoted(*s);
  }
  if (value.is_none()) return "None";
  if (const bool* b = value.boolean()) return *b ? "True" : "False";
  if (const int64_t* i = value.integer()) return std::to_string(*i);
  if (const double* d = value.real()) return float_text(*d, "inf", "nan");
  if (const List* list = value.list(); list && list->kind != ListKind::generator) {
    const bool tuple = list->kind == ListKind::tuple;
    const size_t n = list->items.size();
    return join_repr(tuple ? "(" : "[",
                     !tuple   ? "]"
                     : n == 1 ? ",)"
                              : ")",
                     n, budget, [&](size_t i) { return repr(list->items[i], budget); });
  }
  if (const Dict* dict = value.dict()) {
    return join_repr("{", "}", dict->items.size(), budget, [&](size_t i) {
      return python_quoted(dict->items[i].first) + ": " + repr(dict->items[i].second, budget);
    });
  }
  fail("a {} has no text", value.list() ? "generator" : type_name(value));
}

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonWriter writer(style, budget);
  writer.write(value, 0);
  return std::move(writer.text);
}

std::vector<Value> items_of(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    if (list->kind == ListKind::generator) {
      SSM_CHECK(!list->was_read, "a generator is read twice; | list makes it a list");
      list->was_read = true;
    }
    budget.make(kItemBytes * list->items.size());
    return list->items;
  }
  if (const Dict* dict = value.dict()) {
    for (const auto& item : dict->items) items.push_back(make_string(item.first, budget));
    return items;
  }
  if (const std::string* s = value.string()) {
    for (const std::string_view c : characters(*s)) items.push_back(make_string(std::string(c), budget));
    return items;
  }
  SSM_CHECK(value.is_undefined(), "a {} has no items to go through", type_name(value));
  return items;
}

}  // namespace ssm::text::jinja
