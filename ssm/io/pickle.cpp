#include "ssm/io/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <unordered_map>

namespace ssm::io {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMostBytes = size_t{64} << 20;
constexpr size_t kMostValues = size_t{1} << 20;  // a 64-layer model needs some twenty thousand
constexpr size_t kMostStack = size_t{1} << 20;
constexpr size_t kMostMemo = size_t{1} << 20;
constexpr size_t kMostArguments = 16;  // these are copied: one long tuple used often must not add up

constexpr std::string_view kOrderedDict = "collections OrderedDict";
constexpr std::string_view kRebuildTensor = "torch._utils _rebuild_tensor_v2";
constexpr std::string_view kRebuildParameter = "torch._utils _rebuild_parameter";
constexpr std::array<std::string_view, 11> kGlobals{
    kOrderedDict,        kRebuildTensor,        kRebuildParameter,      "torch FloatStorage",
    "torch HalfStorage", "torch DoubleStorage", "torch LongStorage",    "torch IntStorage",
    "torch ByteStorage", "torch CharStorage",   "torch BFloat16Storage"};

class Reader {
 public:
  Reader(std::span<const std::byte> data, const std::string& name) : data_(data), name_(name) {}
  Pickle read();

 private:
  // Bytes.
  size_t left() const { return data_.size() - at_; }
  std::string_view take(uint64_t size) {
    SSM_CHECK(size <= left(), "{}: pickle: {} bytes wanted at byte {}, {} left", name_, size, at_, left());
    const std::string_view text(reinterpret_cast<const char*>(data_.data()) + at_, size);
    at_ += size;
    return text;
  }
  template <class T>
  T number() {
    take(sizeof(T));
    return load_le<T>(data_, at_ - sizeof(T));
  }
  std::string_view line();

  // Values, stack and memo.
  PickleId make(Kind kind) {
    SSM_CHECK(result_.values.size() < kMostValues, "{}: pickle: more than {} values", name_, kMostValues);
    result_.values.emplace_back().kind = kind;
    return static_cast<PickleId>(result_.values.size() - 1);
  }
  PickleValue& value(PickleId id) { return result_.values[id]; }
  void push(PickleId id) {
    SSM_CHECK(stack_.size() < kMostStack, "{}: pickle: a stack of more than {} values", name_, kMostStack);
    stack_.push_back(id);
  }
  void push_text(Kind kind, std::string_view text) {
    const PickleId id = make(kind);
    value(id).text = text;
    push(id);
  }
  void push_integer(int64_t integer, Kind kind = Kind::integer) {
    const PickleId id = make(kind);
    value(id).integer = integer;
    push(id);
  }
  void push_items(Kind kind, std::span<const PickleId> items) {
    const PickleId id = make(kind);
    value(id).items.assign(items.begin(), items.end());
    push(id);
  }
  PickleId top() const {
    SSM_CHECK(stack_.size() > bottom(), "{}: pickle: nothing on the stack at byte {}", name_, at_);
    return stack_.back();
  }
  PickleId pop() {
    const PickleId id = top();
    stack_.pop_back();
    return id;
  }
  size_t bottom() const { return marks_.empty() ? 0 : marks_.back(); }
  std::vector<PickleId> pop_to_mark();
  void put(uint64_t key);
  void get(uint64_t key);

  // Opcodes.
  bool step();
  bool step_number(unsigned char op);
  bool step_text(unsigned char op);
  bool step_container(unsigned char op);
  bool step_memo(unsigned char op);
  void push_long(std::string_view digits);
  void push_decimal(std::string_view text);
  void push_tuple(size_t size);
  void append(std::span<const PickleId> items);
  void set_items(std::span<const PickleId> items);
  void push_global(std::string_view module, std::string_view name);
  void reduce();
  void build();
  void persistent();

  std::span<const std::byte> data_;
  const std::string& name_;
  size_t at_ = 0;
  Pickle result_;
  std::vector<PickleId> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, PickleId> memo_;
};

std::string_view Reader::line() {
  const std::string_view rest(reinterpret_cast<const char*>(data_.data()) + at_, left());
  const size_t end = rest.find('\n');
  SSM_CHECK(end != rest.npos, "{}: pickle: a text at byte {} has no end", name_, at_);
  at_ += end + 1;
  return rest.substr(0, end);
}

std::vector<PickleId> Reader::pop_to_mark() {
  SSM_CHECK(!marks_.empty(), "{}: pickle: no mark on the stack at byte {}", name_, at_);
  const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
  std::vector<PickleId> items(first, stack_.end());
  stack_.erase(first, stack_.end());
  marks_.pop_back();
  return items;
}

void Reader::put(uint64_t key) {
  SSM_CHECK(memo_.size() < kMostMemo, "{}: pickle: a memo of more than {} values", name_, kMostMemo);
  memo_[key] = top();
}

void Reader::get(uint64_t key) {
  const auto found = memo_.find(key);
  SSM_CHECK(found != memo_.end(), "{}: pickle: memo {} read at byte {} before it is written", name_, key,
            at_);
  push(found->second);
}

void Reader::push_long(std::string_view digits) {
  if (digits.size() > 8) return push_text(Kind::big, digits);
  uint64_t bits = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    bits |= uint64_t{static_cast<unsigned char>(digits[i])} << (8 * i);
  }
  const size_t width = 8 * digits.size();
  if (width > 0 && width < 64 && (bits >> (width - 1)) & 1) bits |= ~uint64_t{0} << width;
  push_integer(static_cast<int64_t>(bits));
}

void Reader::push_decimal(std::string_view text) {
  if (text == "00" || text == "01") return push_integer(text == "01", Kind::boolean);
  if (text.ends_with('L')) text.remove_suffix(1);
  int64_t integer = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), integer);
  SSM_CHECK(error == std::errc{} && end == text.data() + text.size(),
            "{}: pickle: {} is not a 64-bit integer", name_, printable(text));
  push_integer(integer);
}

void Reader::push_tuple(size_t size) {
  SSM_CHECK(stack_.size() - bottom() >= size, "{}: pickle: a tuple of {} at byte {} finds fewer values",
            name_, size, at_);
  const std::vector<PickleId> items(stack_.end() - static_cast<std::ptrdiff_t>(size), stack_.end());
  stack_.resize(stack_.size() - size);
  push_items(Kind::tuple, items);
}

void Reader::append(std::span<const PickleId> items) {
  PickleValue& list = value(top());
  SSM_CHECK(list.kind == Kind::list, "{}: pickle: byte {} appends to {}", name_, at_, name_of(list.kind));
  list.items.insert(list.items.end(), items.begin(), items.end());
}

void Reader::set_items(std::span<const PickleId> items) {
  PickleValue& dict = value(top());
  SSM_CHECK(dict.kind == Kind::dict, "{}: pickle: byte {} sets an item of {}", name_, at_,
            name_of(dict.kind));
  SSM_CHECK(items.size() % 2 == 0, "{}: pickle: a key without a value at byte {}", name_, at_);
  dict.items.insert(dict.items.end(), items.begin(), items.end());
}

void Reader::push_global(std::string_view module, std::string_view name) {
  const std::string global = fmt::format("{} {}", module, name);
  const auto* known = std::find(kGlobals.begin(), kGlobals.end(), global);
  SSM_CHECK(known != kGlobals.end(),
            "{}: its pickle names {}.{}, which is not part of a state dict of tensors; the file is refused",
            name_, printable(module), printable(name));
  push_text(Kind::global, *known);
}

void Reader::reduce() {
  const PickleId arguments = pop();
  const PickleValue& callee = value(pop());
  SSM_CHECK(callee.kind == Kind::global && value(arguments).kind == Kind::tuple,
            "{}: pickle: byte {} calls {}", name_, at_, name_of(callee.kind));
  const std::string_view global = callee.text;
  SSM_CHECK(value(arguments).items.size() <= kMostArguments, "{}: pickle: byte {} calls {} with {} arguments",
            name_, at_, global, value(arguments).items.size());
  const std::vector<PickleId> items = value(arguments).items;
  if (global == kOrderedDict) {
    SSM_CHECK(items.empty(), "{}: pickle: an OrderedDict made from {} arguments", name_, items.size());
    push(make(Kind::dict));
  } else if (global == kRebuildTensor) {
    push_items(Kind::tensor, items);
  } else if (global == kRebuildParameter) {
    SSM_CHECK(!items.empty() && value(items[0]).kind == Kind::tensor,
              "{}: pickle: a parameter at byte {} without a tensor", name_, at_);
    push(items[0]);
  } else {
    fail("{}: pickle: byte {} calls {}", name_, at_, global);
  }
}

// An OrderedDict's attributes (`_metadata` of a state dict): nothing a tensor needs.
void Reader::build() {
  const PickleId state = pop();
  SSM_CHECK(value(top()).kind == Kind::dict && value(state).kind == Kind::dict,
            "{}: pickle: byte {} sets the state of {} from {}", name_, at_, name_of(value(top()).kind),
            name_of(value(state).kind));
}

void Reader::persistent() {
  const PickleId id = pop();
  SSM_CHECK(value(id).kind == Kind::tuple, "{}: pickle: a persistent id at byte {} is {}", name_, at_,
            name_of(value(id).kind));
  SSM_CHECK(value(id).items.size() <= kMostArguments, "{}: pickle: a persistent id of {} values", name_,
            value(id).items.size());
  const std::vector<PickleId> items = value(id).items;
  SSM_CHECK(items.size() >= 5 && value(items[0]).text == "storage" && value(items[1]).kind == Kind::global &&
                value(items[2]).kind == Kind::string && value(items[4]).kind == Kind::integer,
            "{}: pickle: the persistent id at byte {} does not describe a storage", name_, at_);
  push_items(Kind::storage, items);
}

bool Reader::step_number(unsigned char op) {
  switch (op) {
    case 'N':
      push(make(Kind::none));
      return true;
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      push_integer(op == 0x88, Kind::boolean);
      return true;
    case 'K':
      push_integer(number<uint8_t>());
      return true;
    case 'M':
      push_integer(number<uint16_t>());
      return true;
    case 'J':
      push_integer(number<int32_t>());
      return true;
    case 'I':
    case 'L':
      push_decimal(line());
      return true;
    case 0x8a:  // LONG1
      push_long(take(number<uint8_t>()));
      return true;
    case 0x8b:  // LONG4: a negative size is a huge one
      push_long(take(number<uint32_t>()));
      return true;
    case 'G': {  // BINFLOAT, big-endian
      const PickleId id = make(Kind::real);
      value(id).real = std::bit_cast<double>(__builtin_bswap64(number<uint64_t>()));
      push(id);
      return true;
    }
    default:
      return false;
  }
}

bool Reader::step_text(unsigned char op) {
  switch (op) {
    case 'X':
    case 'T':
      push_text(Kind::string, take(number<uint32_t>()));
      return true;
    case 'U':
    case 0x8c:  // SHORT_BINUNICODE
      push_text(Kind::string, take(number<uint8_t>()));
      return true;
    case 0x8d:  // BINUNICODE8
      push_text(Kind::string, take(number<uint64_t>()));
      return true;
    case 'B':
      push_text(Kind::bytes, take(number<uint32_t>()));
      return true;
    case 'C':
      push_text(Kind::bytes, take(number<uint8_t>()));
      return true;
    case 0x8e:  // BINBYTES8
      push_text(Kind::bytes, take(number<uint64_t>()));
      return true;
    case 'c': {
      const std::string_view module = line();
      push_global(module, line());
      return true;
    }
    case 0x93: {  // STACK_GLOBAL
      const PickleId name = pop(), module = pop();
      SSM_CHECK(value(name).kind == Kind::string && value(module).kind == Kind::string,
                "{}: pickle: a global at byte {} without a name", name_, at_);
      push_global(value(module).text, value(name).text);
      return true;
    }
    default:
      return false;
  }
}

bool Reader::step_container(unsigned char op) {
  switch (op) {
    case ']':
      push(make(Kind::list));
      return true;
    case ')':
      push(make(Kind::tuple));
      return true;
    case '}':
      push(make(Kind::dict));
      return true;
    case 'l':
      push_items(Kind::list, pop_to_mark());
      return true;
    case 't':
      push_items(Kind::tuple, pop_to_mark());
      return true;
    case 'd': {
      const std::vector<PickleId> items = pop_to_mark();
      push(make(Kind::dict));
      set_items(items);
      return true;
    }
    case 0x85:
    case 0x86:
    case 0x87:
      push_tuple(op - 0x84u);
      return true;
    case 'a': {
      const PickleId item = pop();
      append({&item, 1});
      return true;
    }
    case 'e':
      append(pop_to_mark());
      return true;
    case 's': {
      const PickleId item = pop();
      const std::array<PickleId, 2> pair{pop(), item};
      set_items(pair);
      return true;
    }
    case 'u':
      set_items(pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool Reader::step_memo(unsigned char op) {
  switch (op) {
    case 'q':
      put(number<uint8_t>());
      return true;
    case 'r':
      put(number<uint32_t>());
      return true;
    case 0x94:  // MEMOIZE
      put(memo_.size());
      return true;
    case 'h':
      get(number<uint8_t>());
      return true;
    case 'j':
      get(number<uint32_t>());
      return true;
    case '(':
      SSM_CHECK(marks_.size() < kMostStack, "{}: pickle: more than {} marks", name_, kMostStack);
      marks_.push_back(stack_.size());
      return true;
    case '0':
      if (!marks_.empty() && marks_.back() == stack_.size()) {
        marks_.pop_back();
      } else {
        pop();
      }
      return true;
    case '1':
      pop_to_mark();
      return true;
    case '2':
      push(top());
      return true;
    default:
      return false;
  }
}

// One opcode; false after STOP.
bool Reader::step() {
  const auto op = number<unsigned char>();
  switch (op) {
    case '.':
      return false;
    case 0x80: {  // PROTO
      const int protocol = number<uint8_t>();
      SSM_CHECK(protocol >= 2 && protocol <= 5, "{}: pickle protocol {} (2 to 5 are read)", name_, protocol);
      return true;
    }
    case 0x95:  // FRAME: a hint about sizes
      number<uint64_t>();
      return true;
    case 'R':
      reduce();
      return true;
    case 'b':
      build();
      return true;
    case 'Q':
      persistent();
      return true;
    default:
      break;
  }
  const bool known = step_number(op) || step_text(op) || step_container(op) || step_memo(op);
  SSM_CHECK(known, "{}: pickle: opcode {:#04x} at byte {} has no place in a state dict of tensors", name_, op,
            at_ - 1);
  return true;
}

Pickle Reader::read() {
  SSM_CHECK(!data_.empty() && data_[0] == std::byte{0x80}, "{}: not a pickle of protocol 2 or later", name_);
  while (step()) {
  }
  result_.root = pop();
  SSM_CHECK(stack_.empty() && marks_.empty(), "{}: pickle: values left over at its end", name_);
  result_.size = at_;
  return std::move(result_);
}

}  // namespace

std::string_view name_of(Kind kind) {
  switch (kind) {
    case Kind::none:
      return "None";
    case Kind::boolean:
      return "a bool";
    case Kind::integer:
    case Kind::big:
      return "an integer";
    case Kind::real:
      return "a float";
    case Kind::string:
      return "a string";
    case Kind::bytes:
      return "bytes";
    case Kind::list:
      return "a list";
    case Kind::tuple:
      return "a tuple";
    case Kind::dict:
      return "a dict";
    case Kind::global:
      return "a global";
    case Kind::storage:
      return "a storage";
    case Kind::tensor:
      return "a tensor";
  }
  return "?";
}

Pickle read_pickle(std::span<const std::byte> data, const std::string& name) {
  return Reader(data.first(std::min(data.size(), kMostBytes)), name).read();
}

}  // namespace ssm::io
