#include "ssm/io/json.h"

#include <charconv>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "ssm/io/bytes.h"

namespace ssm::io {
namespace {

using nlohmann::json;

constexpr size_t kLongestText = size_t{16} << 20;
constexpr size_t kDeepest = 64;
// What bare Infinity and NaN are rewritten to: spellings of numbers that no writer produces.
constexpr std::string_view kInfinity = "1e+000000000000000000001";
constexpr std::string_view kNan = "2e+000000000000000000001";
constexpr std::string_view kIds = "3e+000000000000000000001";  // and a list of ids

std::string rewrite_special_floats(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    const std::string_view rest = text.substr(i);
    if (!in_string && rest.starts_with("Infinity")) {
      result += kInfinity;
      i += 8;
    } else if (!in_string && rest.starts_with("NaN")) {
      result += kNan;
      i += 3;
    } else if (in_string && text[i] == '\\' && i + 1 < text.size()) {
      result += rest.substr(0, 2);
      i += 2;
    } else {
      if (text[i] == '"') in_string = !in_string;
      result += text[i++];
    }
  }
  return result;
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Reads the list of ids that begins at `at`; returns where it ends, or 0 where something else stands there.
size_t read_ids(std::string_view text, size_t at, std::vector<int32_t>& ids) {
  const auto skip_space = [&] {
    while (at < text.size() && is_space(text[at])) ++at;
  };
  do {
    ++at;  // the bracket, or a comma
    skip_space();
    const char* const first = text.data() + at;
    int32_t id = 0;
    const auto [end, error] = std::from_chars(first, text.data() + text.size(), id);
    if (error != std::errc() || *first == '-' || (*first == '0' && end - first > 1)) return 0;
    ids.push_back(id);
    at += static_cast<size_t>(end - first);
    skip_space();
  } while (at < text.size() && text[at] == ',');
  return at < text.size() && text[at] == ']' ? at + 1 : 0;
}

// The text with kIds in the place of each list of ids.
std::string take_ids(std::string_view text, std::vector<std::vector<int32_t>>& lists) {
  std::string rest;
  size_t copied = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\') ++i;
    if (in_string || text[i] != '[') continue;
    std::vector<int32_t> ids;
    const size_t end = read_ids(text, i, ids);
    if (end == 0) continue;
    lists.push_back(std::move(ids));
    rest += fmt::format("{} {} ", text.substr(copied, i - copied), kIds);
    copied = end;
    i = end - 1;
  }
  rest += text.substr(copied);
  return rest;
}

// Builds the value; nlohmann's own builder keeps the last of two equal keys and has no depth limit.
class Builder : public json::json_sax_t {
 public:
  explicit Builder(const std::string& name, std::span<const std::vector<int32_t>> lists = {})
      : name_(name), lists_(lists) {}
  json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& raw) override {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    if (raw == kInfinity) return add(infinity);
    if (raw.size() == kInfinity.size() + 1 && raw.ends_with(kInfinity)) return add(-infinity);
    if (raw == kIds && !lists_.empty()) return add_ids();
    if (raw.ends_with(kNan)) return add(std::numeric_limits<double>::quiet_NaN());
    return add(value);
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    SSM_CHECK(!open_.back()->contains(value), "{}: key \"{}\" appears twice", name_, printable(value));
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& e) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the part after the bracket.
    const std::string_view what = e.what();
    const size_t bracket = what.find("] ");
    fail("{}: not valid JSON (byte {}): {}", name_, position,
         printable(bracket == what.npos ? what : what.substr(bracket + 2)));
  }

 private:
  json* place(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }
  bool add(json value) {
    place(std::move(value));
    return true;
  }
  bool add_ids() {
    const auto* bytes = reinterpret_cast<const uint8_t*>(lists_[0].data());
    add(json::binary({bytes, bytes + lists_[0].size() * sizeof(int32_t)}));
    lists_ = lists_.subspan(1);
    return true;
  }
  bool open(json container) {
    SSM_CHECK(open_.size() < kDeepest, "{}: nested deeper than {} levels", name_, kDeepest);
    open_.push_back(place(std::move(container)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& name_;
  json root_;
  std::vector<json*> open_;  // a parent does not move while its children are built
  std::string key_;
  std::span<const std::vector<int32_t>> lists_;  // of ids, the next first
};

}  // namespace

json parse_json(std::string_view text, const std::string& name, SpecialFloats special) {
  SSM_CHECK(text.size() <= kLongestText, "{}: {} bytes of JSON (at most {})", name, text.size(),
            kLongestText);
  std::string rewritten;
  if (special == SpecialFloats::allow) {
    rewritten = rewrite_special_floats(text);
    text = rewritten;
  }
  Builder builder(name);
  SSM_CHECK(json::sax_parse(text.begin(), text.end(), &builder), "{}: not valid JSON", name);
  return builder.take();
}

json parse_json_packing_ids(std::string_view text, const std::string& name) {
  std::vector<std::vector<int32_t>> lists;
  if (text.size() > kLongestText || text.find(kIds) != text.npos) return parse_json(text, name);
  try {
    const std::string rest = take_ids(text, lists);
    Builder builder(name, lists);
    if (json::sax_parse(rest, &builder)) return builder.take();
  } catch (const Error&) {  // told of below, as the text stands
  }
  return parse_json(text, name);
}

std::vector<int32_t> unpacked_ids(const json& packed) {
  const std::vector<uint8_t>& bytes = packed.get_binary();
  std::vector<int32_t> ids(bytes.size() / sizeof(int32_t));
  std::memcpy(ids.data(), bytes.data(), bytes.size());
  return ids;
}

std::string shown(const json& value) {
  if (value.is_binary()) return shown(json(unpacked_ids(value)));
  return printable(value.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace ssm::io
