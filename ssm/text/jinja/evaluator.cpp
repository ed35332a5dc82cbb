#include <algorithm>

#include "ssm/text/jinja/ast.h"
#include "ssm/text/jinja/builtins.h"
#include "ssm/text/jinja/template.h"

namespace ssm::text::jinja {

struct Loop {
  const std::vector<Value>& items;
  size_t at = 0;
};

namespace {

// Of a template, and for each byte of what it is given.
constexpr uint64_t kSteps = 2'000'000, kStepsPerByte = 100;
constexpr uint64_t kBytes = uint64_t{16} << 20, kBytesPerByte = 64;
constexpr int kDeepestCall = 500;  // expressions, statements and macros within each other
constexpr int64_t kLongestRange = 100'000;

// Variables of a block; what it does not have is looked for in the one around it.
class Scope {
 public:
  explicit Scope(const Scope* parent) : parent_(parent) {}
  void set(int symbol, Value value) {
    for (auto& [name, there] : variables_) {
      if (name != symbol) continue;
      there = std::move(value);
      return;
    }
    variables_.emplace_back(symbol, std::move(value));
  }
  const Value* find(int symbol) const {
    for (const Scope* scope = this; scope; scope = scope->parent_) {
      for (const auto& [name, value] : scope->variables_) {
        if (name == symbol) return &value;
      }
    }
    return nullptr;
  }

 private:
  const Scope* parent_;
  std::vector<std::pair<int, Value>> variables_;
};

enum class Flow { on, stop, next };

class Evaluator {
 public:
  Evaluator(const Program& program, const std::optional<std::tm>& now, Budget budget)
      : program_(program), now_(now), budget_(budget), globals_(nullptr), out_(&result_.text) {
    loop_symbol_ = symbol("loop");
  }

  Rendered run(const nlohmann::ordered_json& variables) {
    define("raise_exception", Global::raise_exception);
    define("range", Global::range);
    define("namespace", Global::make_namespace);
    define("dict", Global::make_dict);
    if (now_) define("strftime_now", Global::strftime_now);
    try {
      for (const auto& [name, value] : variables.items()) define(name, from_json(value, budget_));
      Scope top(&globals_);
      top_ = &top;
      run(program_.body, top);
    } catch (const Error& e) {
      fail("{}:{}: {}", program_.name, line_, e.what());
    }
    return std::move(result_);
  }

 private:
  // Counts how deep the walk is.
  class Deeper {
   public:
    explicit Deeper(Evaluator& e) : depth_(e.depth_) {
      SSM_CHECK(depth_ < kDeepestCall, "calls nest too deep");
      ++depth_;
    }
    ~Deeper() { --depth_; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    int& depth_;
  };

  int symbol(std::string_view name) const {
    const auto it = std::find(program_.symbols.begin() + 1, program_.symbols.end(), name);
    return it == program_.symbols.end() ? -1 : static_cast<int>(it - program_.symbols.begin());
  }
  void define(std::string_view name, Value value) {
    const int at = symbol(name);
    if (at > 0) globals_.set(at, std::move(value));  // others are not asked for
  }

  // --- statements

  Flow run(const Block& block, Scope& scope) {
    for (const Stmt& s : block) {
      const Flow flow = run(s, scope);
      if (flow != Flow::on) return flow;
    }
    return Flow::on;
  }

  Flow run(const Stmt& s, Scope& scope) {
    const Deeper deeper(*this);
    budget_.step();
    line_ = s.line;
    switch (s.kind) {
      case StmtKind::text:
        write(s.text);
        break;
      case StmtKind::print:
        write(to_text(evaluate(*s.expr, scope), budget_));
        break;
      case StmtKind::branch:
        return branch(s, scope);
      case StmtKind::loop:
        return loop(s, scope), Flow::on;
      case StmtKind::set:
        set(s.target, evaluate(*s.expr, scope), scope);
        break;
      case StmtKind::set_block:
        set(s.target, filtered(s, scope), scope);
        break;
      case StmtKind::filter_block:
        write(to_text(filtered(s, scope), budget_));
        break;
      case StmtKind::macro:
        scope.set(s.target.symbols[0], Value(s.macro.get()));
        break;
      case StmtKind::generation:
        generation(s, scope);
        break;
      case StmtKind::stop:
        return Flow::stop;
      case StmtKind::next:
        return Flow::next;
    }
    return Flow::on;
  }

  void write(std::string_view text) {
    budget_.make(text.size());
    *out_ += text;
  }

  // What a block writes, as a str.
  template <class F>
  std::string captured(const F& f) {
    std::string text;
    std::string* const outer = std::exchange(out_, &text);
    f();
    out_ = outer;
    return text;
  }

  Flow branch(const Stmt& s, Scope& scope) {
    for (const auto& [condition, body] : s.branches) {
      if (!condition || truthy(evaluate(*condition, scope))) return run(body, scope);
    }
    return Flow::on;
  }

  void loop(const Stmt& s, Scope& scope) {
    const Value through = evaluate(*s.expr, scope);
    std::vector<Value> items = items_of(through, budget_);
    if (s.condition) {
      std::erase_if(items, [&](const Value& item) {
        Scope inner(&scope);
        set(s.target, item, inner);
        return !truthy(evaluate(*s.condition, inner));
      });
    }
    Loop state{items};
    for (; state.at < items.size(); ++state.at) {
      budget_.step();
      Scope inner(&scope);
      inner.set(loop_symbol_, Value(&state));
      set(s.target, items[state.at], inner);
      if (run(s.body, inner) == Flow::stop) break;
    }
    if (items.empty()) {
      Scope inner(&scope);
      run(s.otherwise, inner);
    }
  }

  void set(const Target& target, Value value, Scope& scope) {
    if (!target.attribute.empty()) {
      const Value* space = scope.find(target.symbols[0]);
      SSM_CHECK(space && space->space(), "\"{}\" is no namespace",
                program_.symbols[index(target.symbols[0])]);
      SSM_CHECK(value.is_data() || value.is_undefined(), "a {} cannot be kept in a namespace",
                type_name(value));
      budget_.step(space->space()->items.size());
      budget_.make(64);
      space->space()->set(target.attribute, std::move(value));
      return;
    }
    if (target.symbols.size() == 1) return scope.set(target.symbols[0], std::move(value));
    const std::vector<Value> items = items_of(value, budget_);
    SSM_CHECK(items.size() == target.symbols.size(), "{} values for {} names", items.size(),
              target.symbols.size());
    for (size_t i = 0; i < items.size(); ++i) scope.set(target.symbols[i], items[i]);
  }
  static size_t index(int symbol) { return static_cast<size_t>(symbol); }

  // The text of a block behind its filters.
  Value filtered(const Stmt& s, Scope& scope) {
    std::string text = captured([&] {
      Scope inner(&scope);
      run(s.body, inner);
    });
    Scope with_text(&scope);
    with_text.set(kBlockText, make_string(std::move(text), budget_));
    return evaluate(*s.expr, with_text);
  }

  void generation(const Stmt& s, Scope& scope) {
    const size_t begin = result_.text.size();
    Scope inner(&scope);
    run(s.body, inner);
    if (result_.text.size() > begin) result_.generated.push_back({begin, result_.text.size()});
  }

  // --- expressions

  Value evaluate(const Expr& e, Scope& scope) {
    const Deeper deeper(*this);
    budget_.step();
    line_ = e.line;
    switch (e.op) {
      case Op::constant:
        return e.value;
      case Op::name:
        return variable(e, scope);
      case Op::list:
        return make_list(evaluate_all(e, 0, scope), budget_);
      case Op::tuple:
        return make_list(evaluate_all(e, 0, scope), budget_, ListKind::tuple);
      case Op::dict:
        return dict(e, scope);
      case Op::attribute:
        return attribute_of(evaluate(*e.args[0], scope), e.text);
      case Op::item:
        return item_of(e, scope);
      case Op::slice:
        return sliced(e, scope);
      case Op::call:
        return call(e, scope);
      case Op::filter: {
        const Value subject = evaluate(*e.args[0], scope);
        Arguments arguments = arguments_of(e, e.text, scope);
        return apply_filter(e.text, subject, arguments, budget_);
      }
      case Op::test: {
        const Value subject = evaluate(*e.args[0], scope);
        Arguments arguments = arguments_of(e, e.text, scope);
        return apply_test(e.text, subject, arguments, budget_);
      }
      case Op::compare:
        return compared(e, scope);
      case Op::binary: {
        const Value a = evaluate(*e.args[0], scope);
        return binary(e.text, a, evaluate(*e.args[1], scope), budget_);
      }
      case Op::unary:
        return unary(e.text, evaluate(*e.args[0], scope));
      default:
        return logical(e, scope);
    }
  }

  Value logical(const Expr& e, Scope& scope) {
    if (e.op == Op::choice) {
      if (truthy(evaluate(*e.args[1], scope))) return evaluate(*e.args[0], scope);
      return e.args[2] ? evaluate(*e.args[2], scope)
                       : Value::undefined("an \"if\" without \"else\" gives nothing");
    }
    const Value a = evaluate(*e.args[0], scope);
    if (e.op == Op::logical_not) return !truthy(a);
    return truthy(a) == (e.op == Op::logical_or) ? a : evaluate(*e.args[1], scope);
  }

  Value variable(const Expr& e, const Scope& scope) {
    const Value* value = scope.find(e.symbol);
    return value ? *value
                 : Value::undefined(fmt::format("\"{}\" is undefined", program_.symbols[index(e.symbol)]));
  }

  std::vector<Value> evaluate_all(const Expr& e, size_t from, Scope& scope) {
    std::vector<Value> values;
    for (size_t i = from; i < e.args.size(); ++i) values.push_back(evaluate(*e.args[i], scope));
    return values;
  }

  Arguments arguments_of(const Expr& e, std::string callee, Scope& scope) {
    std::vector<std::pair<std::string, Value>> named;
    std::vector<Value> positional = evaluate_all(e, 1, scope);
    for (const auto& [name, value] : e.named) named.emplace_back(name, evaluate(*value, scope));
    return {std::move(callee), std::move(positional), std::move(named)};
  }

  Value dict(const Expr& e, Scope& scope) {
    Dict dict;
    for (size_t i = 0; i < e.args.size(); i += 2) {
      const Value key = evaluate(*e.args[i], scope);
      SSM_CHECK(key.string(), "a key of a dict is a {}: only str is supported", type_name(key));
      budget_.step(dict.items.size());
      dict.set(*key.string(), evaluate(*e.args[i + 1], scope));
    }
    return make_dict(std::move(dict.items), budget_);
  }

  Value item_of(const Expr& e, Scope& scope) {
    const Value object = evaluate(*e.args[0], scope);
    const Value key = evaluate(*e.args[1], scope);
    return key.string() && object.loop() ? attribute_of(object, *key.string()) : item(object, key, budget_);
  }

  Value sliced(const Expr& e, Scope& scope) {
    const Value object = evaluate(*e.args[0], scope);
    const auto bound = [&](size_t i) { return e.args[i] ? evaluate(*e.args[i], scope) : Value(); };
    const Value begin = bound(1), end = bound(2);
    return slice(object, begin, end, bound(3), budget_);
  }

  Value compared(const Expr& e, Scope& scope) {
    Value left = evaluate(*e.args[0], scope);
    for (size_t i = 0; i < e.names.size(); ++i) {
      Value right = evaluate(*e.args[i + 1], scope);
      if (!compare(e.names[i], left, right, budget_)) return false;
      left = std::move(right);
    }
    return true;
  }

  Value attribute_of(const Value& object, const std::string& name) {
    if (!object.loop()) return attribute(object, name, budget_);
    const Loop& loop = *object.loop();
    const auto at = static_cast<int64_t>(loop.at), n = static_cast<int64_t>(loop.items.size());
    if (name == "index") return at + 1;
    if (name == "index0") return at;
    if (name == "revindex") return n - at;
    if (name == "revindex0") return n - at - 1;
    if (name == "first") return at == 0;
    if (name == "last") return at + 1 == n;
    if (name == "length") return n;
    if (name == "previtem")
      return at > 0 ? loop.items[loop.at - 1] : Value::undefined("there is no previtem");
    if (name == "nextitem")
      return at + 1 < n ? loop.items[loop.at + 1] : Value::undefined("there is no nextitem");
    fail("\"loop.{}\" is not supported", name);
  }

  // --- calls

  Value call(const Expr& e, Scope& scope) {
    const Expr& callee = *e.args[0];
    if (callee.op == Op::attribute) {
      const Value object = evaluate(*callee.args[0], scope);
      Arguments arguments = arguments_of(e, callee.text, scope);
      SSM_CHECK(!object.loop(), "\"loop.{}()\" is not supported", callee.text);
      return call_method(object, callee.text, arguments, budget_);
    }
    const Value function = evaluate(callee, scope);
    SSM_CHECK(!function.is_undefined(), "{}", function.why_undefined());
    const std::string name = callee.op == Op::name ? program_.symbols[index(callee.symbol)] : "a call";
    Arguments arguments = arguments_of(e, name, scope);
    line_ = e.line;
    if (function.macro()) return call_macro(*function.macro(), arguments);
    SSM_CHECK(function.global(), "a {} cannot be called", type_name(function));
    return call_global(*function.global(), arguments);
  }

  Value call_macro(const Macro& macro, Arguments& arguments) {
    Scope scope(top_);
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const auto& [symbol, otherwise] = macro.parameters[i];
      const Value* given = arguments.find(i, macro.parameter_names[i]);
      scope.set(symbol, given ? *given
                        : otherwise
                            ? evaluate(*otherwise, scope)
                            : Value::undefined(fmt::format("\"{}\" is undefined", macro.parameter_names[i])));
    }
    arguments.finish();
    return make_string(captured([&] { run(macro.body, scope); }), budget_);
  }

  Value call_global(Global global, Arguments& arguments) {
    switch (global) {
      case Global::raise_exception: {
        const Value* message = arguments.find(0, "message");
        fail("the template refuses this: {}", message ? to_text(*message, budget_).substr(0, 1000) : "");
      }
      case Global::range:
        return range(arguments);
      case Global::make_namespace:
        return Value::make_namespace(std::make_shared<Dict>(Dict{named(arguments)}));
      case Global::make_dict:
        return make_dict(named(arguments), budget_);
      case Global::strftime_now:
        break;
    }
    const std::string format = arguments.text(0, "format");
    arguments.finish();
    return make_string(time_text(format), budget_);
  }

  std::vector<std::pair<std::string, Value>> named(const Arguments& arguments) {
    SSM_CHECK(arguments.count() == 0, "{}: only arguments with names are supported", arguments.callee());
    for (const auto& [name, value] : arguments.named()) {
      SSM_CHECK(value.is_data() || value.is_undefined(), "{}: a {}", arguments.callee(), type_name(value));
    }
    return arguments.named();
  }

  Value range(Arguments& arguments) {
    int64_t begin = 0, end = 0, step = 1;
    for (size_t i = 0; i < arguments.count(); ++i) {
      SSM_CHECK(arguments.at(i).integer(), "range: of a {}", type_name(arguments.at(i)));
      const int64_t value = *arguments.find(i, "")->integer();
      (i == 2 ? step : i == 1 ? end : begin) = value;
    }
    SSM_CHECK(arguments.count() >= 1 && arguments.count() <= 3 && step != 0,
              "range: wants one to three numbers");
    if (arguments.count() == 1) std::swap(begin, end);
    std::vector<Value> items;
    for (int64_t i = begin; step > 0 ? i < end : i > end;) {
      SSM_CHECK(std::ssize(items) < kLongestRange, "range: more than {} numbers", kLongestRange);
      items.emplace_back(i);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return make_list(std::move(items), budget_);
  }

  std::string time_text(const std::string& format) const {
    constexpr size_t kLongest = 128;
    SSM_CHECK(format.size() <= kLongest, "strftime_now: a format of {} bytes", format.size());
    if (format.empty()) return {};
    for (size_t i = 0; i < format.size(); ++i) {
      if (format[i] != '%') continue;
      if (format.substr(i + 1).starts_with('-')) ++i;
      const char letter = ++i < format.size() ? format[i] : ' ';
      SSM_CHECK(std::string_view("aAbBcdFHIjmMpSTuUwWxXyYZ%").find(letter) != std::string_view::npos,
                "strftime_now: the format \"%{}\" is not supported", letter);
    }
    std::string text(16 * kLongest, '\0');
    text.resize(std::strftime(text.data(), text.size(), format.c_str(), &*now_));
    return text;
  }

  const Program& program_;
  const std::optional<std::tm>& now_;
  Budget budget_;
  Scope globals_;
  const Scope* top_ = nullptr;
  Rendered result_;
  std::string* out_;
  int line_ = 1, depth_ = 0, loop_symbol_ = -1;
};

uint64_t bytes_of(const nlohmann::ordered_json& json, int depth = 0) {
  constexpr int kDeepestInput = 60;
  SSM_CHECK(depth <= kDeepestInput, "a chat template's variables nest deeper than {} levels", kDeepestInput);
  uint64_t total = 16;
  if (json.is_string()) total += json.get_ref<const std::string&>().size();
  if (json.is_array()) {
    for (const auto& item : json) total += bytes_of(item, depth + 1);
  } else if (json.is_object()) {
    for (const auto& [key, item] : json.items()) total += key.size() + bytes_of(item, depth + 1);
  }
  return total;
}

}  // namespace

Template::Template(std::string_view source, std::string name)
    : program_(std::make_shared<const Program>(parse(source, std::move(name)))) {}

bool Template::marks_generation() const { return program_->marks_generation; }

Rendered Template::render(const nlohmann::ordered_json& variables, const std::optional<std::tm>& now) const {
  const uint64_t given = bytes_of(variables);
  return Evaluator(*program_, now, Budget(kSteps + kStepsPerByte * given, kBytes + kBytesPerByte * given))
      .run(variables);
}

}  // namespace ssm::text::jinja
