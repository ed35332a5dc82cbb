// Reading the small parts of a tokenizer.json: every failure is an Error that names the file and the field.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "ssm/core/error.h"

namespace ssm::text {

// A JSON object with the name errors give it, such as "tokenizer.json: pre_tokenizer.pretokenizers[1]".
struct JsonObject {
  const nlohmann::json& json;
  std::string name;

  JsonObject(const nlohmann::json& value, std::string where) : json(value), name(std::move(where)) {
    SSM_CHECK(json.is_object(), "{} is not an object", name);
  }
  std::string name_of(const char* field) const { return name + "." + field; }
  // nullptr: absent or null
  const nlohmann::json* find(const char* field) const {
    const auto it = json.find(field);
    return it == json.end() || it->is_null() ? nullptr : &*it;
  }
  const nlohmann::json& at(const char* field) const {
    const auto* value = find(field);
    SSM_CHECK(value, "{} has no \"{}\"", name, field);
    return *value;
  }
  bool boolean(const char* field, std::optional<bool> otherwise = std::nullopt) const {
    const auto* value = otherwise ? find(field) : &at(field);
    if (!value) return *otherwise;
    SSM_CHECK(value->is_boolean(), "{} is not true or false", name_of(field));
    return value->get<bool>();
  }
  const std::string& string(const char* field) const {
    const auto& value = at(field);
    SSM_CHECK(value.is_string(), "{} is not a string", name_of(field));
    return value.get_ref<const std::string&>();
  }
  const nlohmann::json& array(const char* field) const {
    const auto& value = at(field);
    SSM_CHECK(value.is_array(), "{} is not a list", name_of(field));
    return value;
  }
  uint64_t count(const char* field, uint64_t limit) const {
    const auto& value = at(field);
    SSM_CHECK(value.is_number_unsigned() && value.get<uint64_t>() <= limit,
              "{} is not a whole number in [0, {}]", name_of(field), limit);
    return value.get<uint64_t>();
  }
};

}  // namespace ssm::text
