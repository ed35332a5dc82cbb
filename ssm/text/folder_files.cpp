#include "ssm/text/folder_files.h"

#include <fstream>

#include "ssm/text/json_fields.h"
#include "ssm/text/tokenizer_json.h"

namespace ssm::text {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = uint64_t{1} << 24;

std::string read_file(const fs::path& path, uint64_t limit) {
  std::error_code error;
  SSM_CHECK(fs::is_regular_file(path, error), "{}: not a file", path.string());
  const uint64_t size = fs::file_size(path, error);
  SSM_CHECK(!error, "{}: {}", path.string(), error.message());
  SSM_CHECK(size <= limit, "{}: {} bytes are more than it may have ({})", path.string(), size, limit);
  std::string bytes(size, '\0');
  std::ifstream file(path, std::ios::binary);
  SSM_CHECK(file.read(bytes.data(), static_cast<std::streamsize>(size)), "{}: cannot be read", path.string());
  return bytes;
}

nlohmann::json read_config_json(const fs::path& path) {
  // The tree is small, but what it is read with refuses depth.
  nlohmann::json config = read_tokenizer_json(read_file(path, kMaxConfigBytes), path.string()).rest;
  SSM_CHECK(config.is_object(), "{}: not an object", path.string());
  return config;
}

std::string token_text(const nlohmann::json& config, const std::string& field, const std::string& file) {
  const auto it = config.find(field);
  if (it == config.end() || it->is_null()) return {};
  if (it->is_string()) return it->get<std::string>();
  SSM_CHECK(it->is_object(), "{}: {} is neither a string nor an object", file, field);
  return JsonObject(*it, file + ": " + field).string("content");
}

}  // namespace ssm::text
