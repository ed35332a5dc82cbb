// JSON of model folders, read strictly: duplicate keys, deep nesting, trailing text and oversized files are
// errors that name the file. Python's bare Infinity, -Infinity and NaN are read where asked for.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ssm::io {

enum class SpecialFloats { refuse, allow };

// Throws Error beginning with `name`.
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          SpecialFloats special = SpecialFloats::refuse);

// A value in a message: its JSON text, cut when long.
std::string shown(const nlohmann::json& value);

}  // namespace ssm::io
