// Small files of a model's folder that the tokenizer and the chat template are made of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace ssm::text {

// Throws Error naming the file, also where it has more than `limit` bytes.
std::string read_file(const std::filesystem::path& path, uint64_t limit);

// tokenizer_config.json and the like, at most 16 MiB and nested no deeper than a tokenizer.json.
nlohmann::json read_config_json(const std::filesystem::path& path);

// The value of "bos_token" and the like: a string, or an added token written out; empty: not named.
std::string token_text(const nlohmann::json& config, const std::string& field, const std::string& file);

}  // namespace ssm::text
