#include <map>

#include "ssm/text/jinja/builtins.h"

namespace ssm::text::jinja {
namespace {

using Test = bool (*)(const Value&, Arguments&, Budget&);

template <char const* op>
bool compared(const Value& v, Arguments& a, Budget& budget) {
  return compare(op, v, a.need(0, "other"), budget);
}
constexpr char kEqual[] = "==", kUnequal[] = "!=", kLess[] = "<", kMore[] = ">",
               kAtMost[] = "<=", kAtLeast[] = ">=", kIn[] = "in";

bool same(const Value& v, Arguments& a, Budget& budget) {
  const Value& other = a.need(0, "other");
  const bool simple = v.is_none() || v.boolean() || other.is_none() || other.boolean();
  SSM_CHECK(simple, "sameas: only of true, false and none");
  return (v.boolean() != nullptr) == (other.boolean() != nullptr) && equal(v, other, budget);
}

int64_t rest(const Value& v, int64_t by, std::string_view test) {
  SSM_CHECK(v.integer() && by != 0, "{}: of a {}", test, type_name(v));
  return by == -1 ? 0 : *v.integer() % by;
}

bool divisible(const Value& v, Arguments& a, Budget&) {
  return rest(v, a.integer_or(0, "num", 0), "divisibleby") == 0;
}

bool is_container(const Value& v) { return v.string() || v.list() || v.dict(); }

const std::map<std::string_view, Test>& tests() {
  using V = const Value&;
  using A = Arguments&;
  using B = Budget&;
  static const std::map<std::string_view, Test> all{
      {"boolean", [](V v, A, B) { return v.boolean() != nullptr; }},
      {"callable", [](V v, A, B) { return v.macro() || v.global(); }},
      {"defined", [](V v, A, B) { return !v.is_undefined(); }},
      {"divisibleby", divisible},
      {"eq", compared<kEqual>},
      {"equalto", compared<kEqual>},
      {"even", [](V v, A, B) { return rest(v, 2, "even") == 0; }},
      {"false", [](V v, A, B) { return v.boolean() && !*v.boolean(); }},
      {"float", [](V v, A, B) { return v.real() != nullptr; }},
      {"ge", compared<kAtLeast>},
      {"gt", compared<kMore>},
      {"in", compared<kIn>},
      {"integer", [](V v, A, B) { return v.integer() != nullptr; }},
      {"iterable", [](V v, A, B) { return is_container(v) || v.is_undefined(); }},
      {"le", compared<kAtMost>},
      {"lt", compared<kLess>},
      {"mapping", [](V v, A, B) { return v.dict() != nullptr; }},
      {"ne", compared<kUnequal>},
      {"none", [](V v, A, B) { return v.is_none(); }},
      {"number", [](V v, A, B) { return v.is_number(); }},
      {"odd", [](V v, A, B) { return rest(v, 2, "odd") != 0; }},
      {"sameas", same},
      {"sequence", [](V v, A, B) { return is_container(v) || v.is_undefined(); }},
      {"string", [](V v, A, B) { return v.string() != nullptr; }},
      {"true", [](V v, A, B) { return v.boolean() && *v.boolean(); }},
      {"undefined", [](V v, A, B) { return v.is_undefined(); }}};
  return all;
}

}  // namespace

bool is_test(std::string_view name) { return tests().contains(name); }

bool takes_argument(std::string_view test) {
  for (const std::string_view name :
       {"divisibleby", "eq", "equalto", "ge", "gt", "in", "le", "lt", "ne", "sameas"}) {
    if (test == name) return true;
  }
  return false;
}

bool apply_test(std::string_view name, const Value& subject, Arguments& arguments, Budget& budget) {
  budget.step();
  const bool result = tests().at(name)(subject, arguments, budget);
  arguments.finish();
  return result;
}

}  // namespace ssm::text::jinja
