#include "ssm/io/config_fields.h"

#include <cmath>
#include <limits>

#include "ssm/io/bytes.h"

namespace ssm::io {
namespace {

using nlohmann::json;

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

// A number, also as transformers 5 writes infinities: {"__float__": "Infinity"}.
std::optional<double> real_of(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_object() || value.size() != 1 || !value.contains("__float__")) return std::nullopt;
  const json& name = value["__float__"];
  if (name == "Infinity") return std::numeric_limits<double>::infinity();
  if (name == "-Infinity") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

// The value of an integer within [low, 2^31), whichever way the parser stored it.
std::optional<int64_t> integer_of(const json& value, int64_t low) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargest))
    return std::nullopt;
  const auto integer = value.get<int64_t>();
  if (integer < low || integer > kLargest) return std::nullopt;
  return integer;
}

}  // namespace

ConfigFields::ConfigFields(const json& object, std::string file, std::string prefix)
    : object_(object), file_(std::move(file)), prefix_(std::move(prefix)) {
  if (object_.is_object()) return;
  if (prefix_.ends_with('.')) prefix_.pop_back();
  refuse(prefix_.empty() ? "the top level" : "", "is {}, not an object", shown(object_));
}

const json* ConfigFields::find(const char* key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

const json* ConfigFields::present(const char* key, bool required) const {
  const auto found = object_.find(key);
  if (found != object_.end()) return &*found;
  if (required) refuse(key, "is missing");
  return nullptr;
}

int64_t ConfigFields::positive(const char* key, std::optional<int64_t> fallback) const {
  const json* value = present(key, !fallback);
  if (!value) return *fallback;
  const std::optional<int64_t> integer = integer_of(*value, 1);
  if (!integer) refuse(key, "is {}, not a whole number from 1 to {}", shown(*value), kLargest);
  return *integer;
}

int64_t ConfigFields::natural(const char* key, int64_t fallback) const {
  const json* value = present(key, false);
  if (!value) return fallback;
  const std::optional<int64_t> integer = integer_of(*value, 0);
  if (!integer) refuse(key, "is {}, not a whole number from 0 to {}", shown(*value), kLargest);
  return *integer;
}

double ConfigFields::positive_real(const char* key, double fallback) const {
  const json* value = present(key, false);
  if (!value) return fallback;
  const std::optional<double> real = real_of(*value);
  if (!real || !std::isfinite(*real) || *real <= 0) {
    refuse(key, "is {}, not a positive number", shown(*value));
  }
  return *real;
}

bool ConfigFields::flag(const char* key, std::optional<bool> fallback) const {
  const json* value = present(key, !fallback);
  if (!value) return *fallback;
  if (!value->is_boolean()) refuse(key, "is {}, not true or false", shown(*value));
  return value->get<bool>();
}

std::string ConfigFields::text(const char* key, std::optional<std::string> fallback) const {
  const json* value = present(key, !fallback);
  if (!value) return *fallback;
  if (!value->is_string()) refuse(key, "is {}, not a text", shown(*value));
  return value->get<std::string>();
}

json ConfigFields::limits(const char* key) const {
  const json* value = present(key, false);
  if (!value) return {0.0, std::numeric_limits<double>::infinity()};
  if (!value->is_array() || value->size() != 2) refuse(key, "is {}, not [low, high]", shown(*value));
  const std::optional<double> low = real_of((*value)[0]), high = real_of((*value)[1]);
  if (!low || !high || !(*low <= *high)) refuse(key, "is {}, not [low, high]", shown(*value));
  return {*low, *high};
}

json ConfigFields::one_token_id(const char* key, const json& value) const {
  if (value.is_null()) return value;
  const std::optional<int64_t> id = integer_of(value, -1);
  if (!id) refuse(key, "is {}, not a token id", shown(value));
  return *id == -1 ? json(nullptr) : json(*id);  // -1 stands for none
}

json ConfigFields::token_id(const char* key, json fallback) const {
  const json* value = present(key, false);
  return value ? one_token_id(key, *value) : std::move(fallback);
}

json ConfigFields::token_ids(const char* key, json fallback) const {
  const json* value = present(key, false);
  if (!value || !value->is_array()) return token_id(key, std::move(fallback));
  json ids = json::array();
  for (const json& item : *value) {
    const json id = one_token_id(key, item);
    if (id.is_null()) refuse(key, "is {}, not a list of token ids", shown(*value));
    ids.push_back(id);
  }
  return ids;
}

int64_t ConfigFields::expanded(const char* key, double expand, int64_t width) const {
  const double size = std::trunc(expand * static_cast<double>(width));
  if (!(size >= 1 && size <= static_cast<double>(kLargest))) refuse(key, "makes {} inner channels", size);
  return static_cast<int64_t>(size);
}

void check_mamba2_shape(const ConfigFields& fields, const Mamba2Shape& shape, const char* heads_key,
                        const char* groups_key) {
  if (shape.heads * shape.head_dim != shape.inner) {
    fields.refuse(heads_key,
                  "makes {} heads of {} channels, but there are {} inner channels (hidden size {})",
                  shape.heads, shape.head_dim, shape.inner, shape.hidden);
  }
  if (shape.heads % shape.groups != 0) {
    fields.refuse(groups_key, "is {}, which does not divide the {} heads", shape.groups, shape.heads);
  }
}

}  // namespace ssm::io
