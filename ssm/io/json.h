// JSON of model folders, read strictly: duplicate keys, deep nesting, trailing text and oversized files are
// errors that name the file. Python's bare Infinity, -Infinity and NaN are read where asked for.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::io {

enum class SpecialFloats { refuse, allow };

// Throws Error beginning with `name`.
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          SpecialFloats special = SpecialFloats::refuse);

// The same, but a list of nothing but whole numbers from 0 to 2^31 - 1, token ids say, becomes a binary value
// that holds them as int32, which no JSON text makes otherwise.
nlohmann::json parse_json_packing_ids(std::string_view text, const std::string& name);
std::vector<int32_t> unpacked_ids(const nlohmann::json& packed);

// A value in a message: its JSON text, cut when long.
std::string shown(const nlohmann::json& value);

}  // namespace ssm::io
