#include "ssm/hub/model_cache.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

namespace ssm::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxPart = 128;

// A part of a hub name is also a part of a path here: letters, digits, '-', '_' and '.', never leading dots.
bool is_part(std::string_view part) {
  const bool known = std::all_of(part.begin(), part.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  });
  return known && !part.empty() && part.size() <= kMaxPart && part.front() != '.' && part.front() != '-' &&
         part.find("..") == std::string_view::npos;
}

struct HubName {
  std::string_view owner, name, revision;
};

std::optional<HubName> parse(std::string_view text) {
  HubName parsed{{}, {}, "main"};
  if (const size_t at = text.find('@'); at != std::string_view::npos) {
    parsed.revision = text.substr(at + 1);
    text = text.substr(0, at);
  }
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  parsed.owner = text.substr(0, slash);
  parsed.name = text.substr(slash + 1);
  if (!is_part(parsed.owner) || !is_part(parsed.name) || !is_part(parsed.revision)) return std::nullopt;
  return parsed;
}

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
  return is_part(commit) ? commit : std::string();
}

}  // namespace

fs::path cache_folder() {
  if (fs::path cache = from_environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const fs::path home = from_environment("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path xdg = from_environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "huggingface/hub";
  if (const fs::path home = from_environment("HOME"); !home.empty()) return home / ".cache/huggingface/hub";
  return {};
}

bool is_hub_name(std::string_view name) { return parse(name).has_value(); }

std::optional<fs::path> find_cached_model(std::string_view name) {
  const std::optional<HubName> parsed = parse(name);
  const fs::path cache = cache_folder();
  if (!parsed || cache.empty()) return std::nullopt;
  std::string entry = "models--";
  entry.append(parsed->owner).append("--").append(parsed->name);
  const fs::path model = cache / entry;
  std::string commit = read_ref(model / "refs" / parsed->revision);
  if (commit.empty()) commit = parsed->revision;  // a revision may be the commit itself
  const fs::path folder = model / "snapshots" / commit;
  std::error_code error;
  return fs::is_directory(folder, error) ? std::optional(folder) : std::nullopt;
}

}  // namespace ssm::hub
