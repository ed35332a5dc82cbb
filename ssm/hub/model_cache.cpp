#include "ssm/hub/model_cache.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#include "ssm/core/plain_name.h"

namespace ssm::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxPart = 128;

fs::path from_environment(const char* variable) {
  const char* value = std::getenv(variable);
  if (!value || !*value) return {};
  const std::string_view text = value;
  const char* home = std::getenv("HOME");
  if (text.starts_with("~/") && home) return fs::path(home) / text.substr(2);
  return text;
}

// The commit that a ref names; empty when there is none or it could not be one.
std::string read_ref(const fs::path& file) {
  std::ifstream in(file);
  std::string commit(kMaxPart + 1, '\0');
  in.read(commit.data(), static_cast<std::streamsize>(commit.size()));
  commit.resize(static_cast<size_t>(std::max<std::streamsize>(0, in.gcount())));
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r' || commit.back() == ' ')) {
    commit.pop_back();
  }
  return is_safe_part(commit) ? commit : std::string();
}

}  // namespace

fs::path home_folder() {
  if (fs::path home = from_environment("HF_HOME"); !home.empty()) return home;
  if (const fs::path xdg = from_environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "huggingface";
  if (const fs::path home = from_environment("HOME"); !home.empty()) return home / ".cache/huggingface";
  return {};
}

fs::path cache_folder() {
  if (fs::path cache = from_environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  const fs::path home = home_folder();
  return home.empty() ? home : home / "hub";
}

bool is_safe_part(std::string_view part) {
  return is_plain_name(part, kMaxPart) && part.find("..") == std::string_view::npos;
}

std::vector<std::string_view> parts_of(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    parts.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool is_safe_path(std::string_view path) {
  const std::vector<std::string_view> parts = parts_of(path);
  return std::all_of(parts.begin(), parts.end(), is_safe_part);
}

std::optional<HubName> parse_hub_name(std::string_view text) {
  HubName parsed{{}, {}, "main"};
  if (const size_t at = text.find('@'); at != std::string_view::npos) {
    parsed.revision = text.substr(at + 1);
    text = text.substr(0, at);
  }
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  parsed.owner = text.substr(0, slash);
  parsed.name = text.substr(slash + 1);
  if (!is_safe_part(parsed.owner) || !is_safe_part(parsed.name) || !is_safe_path(parsed.revision))
    return std::nullopt;
  return parsed;
}

fs::path HubName::folder() const {
  const fs::path cache = cache_folder();
  return cache.empty() ? fs::path() : cache / ("models--" + owner + "--" + name);
}

bool is_hub_name(std::string_view name) { return parse_hub_name(name).has_value(); }

bool holds_weights(const fs::path& folder) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const fs::path kind = entry.path().extension();
    if ((kind == ".safetensors" || kind == ".bin" || kind == ".gguf") && fs::exists(entry.path(), error))
      return true;  // the file, not only a link to where it should be
  }
  return false;
}

std::optional<fs::path> find_cached_model(std::string_view name) {
  const std::optional<HubName> parsed = parse_hub_name(name);
  if (!parsed) return std::nullopt;
  const fs::path model = parsed->folder();
  if (model.empty()) return std::nullopt;
  std::string commit = read_ref(model / "refs" / parsed->revision);
  if (commit.empty()) commit = parsed->revision;  // a revision may be the commit itself
  const fs::path folder = model / "snapshots" / commit;
  std::error_code error;
  return fs::is_directory(folder, error) ? std::optional(folder) : std::nullopt;
}

}  // namespace ssm::hub
